-- End an allocation that has not started (delayed, waiting, on hold or granted), or one made by hand.
-- flags: allow-oom
-- uses: base events journal cores index line limits runtimes tenants dates claim breaker reserve place forecast pass
-- KEYS: prefix. ARGV from 5: id, outcome ("cancelled"), publish ("1"|"0", as in release), note (see _journal) or "",
--   "waits" (only if it has not been granted) or "".
-- A task is buried: its result (REVOKED) is still to be written by the caller or the next tick, then settled.
-- Reply: {"ok", former state, task id, task name, message or "", grants, entry} | {"running"} | {"granted"}
--   | {"gone"} | what _journal refuses with. Touches: delayed, onhold, obits, events, journal and all that claim, dequeue and pass touch.
local id, outcome, note = ARGV[5], ARGV[6], read_note(ARGV[8])
local no = refused(note)
if no then return no end
local a = load_alloc(id)
if not a or a.state == "released" then return { "gone" } end
local by_hand = need_of(a.shape).kind == "m"
if a.state == "running" and not by_hand then return { "running" } end
if ARGV[9] == "waits" and (a.state == "granted" or a.state == "running") then return { "granted" } end
local msg = not by_hand and call("HGET", K.alloc .. id, "msg") or ""
local grants, record = {}, note and dump(id)
local held = a.state == "granted" or a.state == "running"
local n = held and withdraw(id, a)
if not held then
  take_out(id, a)
  call("ZREM", K.manual, id)
end
event("cancelled", id, a.tid, "name", a.name, "from", a.state, "outcome", outcome)
if by_hand then forget(id, a, outcome) else bury(id, a, outcome) end
local entry = journal(note, { "allocation:" .. id }, { state = a.state, device = a.dev }, { state = "released" }, record)
if held then
  pass_node(n, grants)
  if by_hand then close_idle_node(node_of(a.dev)) end
end
if ARGV[7] == "0" then leave_to_tick(grants) end
return answered(note, { "ok", a.state, a.tid, a.name, msg, grants, entry })
