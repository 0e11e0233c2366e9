-- Give back what an allocation holds, once, and grant what now fits.
-- flags: allow-oom
-- uses: base events journal cores index line limits runtimes peaks tenants dates claim breaker reserve place forecast pass loss
-- KEYS: prefix. ARGV from 5: id, token or "" (any), outcome, weight of the newest run time, publish ("1": the caller
--   publishes the grants; "0": it cannot, so they are due at once for the next tick), note (see
--   _journal) or "", class of the error or "", what the run used at most (see peaks_told) or "".
-- outcome "requeue" puts the task back into line under its old place instead of ending it. "lost": its process died, and it
-- may be repeated as often as LOSSES says; then it is buried, so that a result is written.
-- Reply: {"ok", grants, entry} | {"gone", outcome or ""} | {"stale", live token} | {"not_held", state}
-- | {"not_by_hand", task id} (with a note) | what _journal
-- refuses with. grant: {id, token, queue, message}
-- Touches: runtimes, peaks, events, journal and all that claim and pass touch.
local id, token, outcome, decay = ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8])
local note = read_note(ARGV[10])
local no = refused(note)
if no then return no end
local a = load_alloc(id)
if not a then return { "gone", call("GET", K.tomb .. id) or "" } end
if a.state == "released" then return { "gone", "buried" } end
if a.state ~= "granted" and a.state ~= "running" then return { "not_held", a.state } end
if token ~= "" and token ~= a.tok then return { "stale", a.tok } end
-- A task is its worker's to release: what an undo would bring back runs already, or has run.
if note and need_of(a.shape).kind == "t" then return { "not_by_hand", a.tid } end

local lost, record = outcome == "lost" and {}, note and dump(id)
local claim = need_of(a.shape) -- a share by what it came to
local n = not lost and withdraw(id, a)
if lost then
  n = lose(id, a, lost)
elseif outcome == "requeue" then
  event("requeued", id, a.tid, "name", a.name, "device", a.dev, "token", a.tok)
  requeue(id, a)
else
  local told = peaks_told(ARGV[12])
  if outcome == "success" and a.s_ms then
    learn_run(a.name, a.size, now - a.s_ms, decay)
    if told then learn_peaks(a.name, a.size, told, claim, call("HEXISTS", K.alloc .. id, "oom") == 1) end
  end
  event("released", id, a.tid, "name", a.name, "device", a.dev, "token", a.tok, "outcome", outcome,
    "held_ms", a.s_ms and now - a.s_ms or 0, unpack(peak_fields(told, (ARGV[11] or "") ~= "" and { "error", ARGV[11] } or {})))
  forget(id, a, outcome)
end
local entry = journal(note, { "allocation:" .. id }, { state = a.state, device = a.dev }, { state = "released" }, record)
local grants = {}
-- What goes back into line may fit anywhere; what is freed, only here.
if lost or outcome == "requeue" then pass_all(grants) else pass_node(n, grants) end
if need_of(a.shape).kind == "m" then close_idle_node(node_of(a.dev)) end
if ARGV[9] == "0" then leave_to_tick(grants) end
return answered(note, { "ok", grants, entry })
