-- Put an allocation that waits or is delayed on hold: it keeps its place, and is not granted. Or let it go on.
-- flags: allow-oom
-- uses: base events journal cores index line limits runtimes tenants dates claim breaker reserve place forecast pass
-- KEYS: prefix. ARGV from 5: id, what ("hold"|"unhold"), by (who holds it: "operator"), publish ("1"|"0", as in release),
--   note (see _journal) or "".
-- Its expiry and, if it was made by hand, its TTL go on while it is on hold.
-- Reply: {"ok", former state, grants, entry, state} | {"gone"} | {"state", state} when that cannot be done in its state | what
-- _journal refuses with. Touches: alloc, onhold, delayed, events, journal and all that dequeue and pass touch.
local id, what, note = ARGV[5], ARGV[6], read_note(ARGV[9])
local no = refused(note)
if no then return no end
local a = load_alloc(id)
if not a or a.state == "released" then return { "gone" } end
local grants, becomes = {}, "on_hold"
local before = { state = a.state, by = call("HGET", K.alloc .. id, "hold") or nil }
if what == "hold" then
  -- What an unhold let go on, and a breaker has set aside since, is as it was when that is undone: on hold.
  local again = note and note.way == "undo" and a.state == "on_hold"
  if a.state ~= "waiting" and a.state ~= "delayed" and not again then return { "state", a.state } end
  hold(id, a, ARGV[7])
else
  if a.state ~= "on_hold" then return { "state", a.state } end
  becomes = unhold(id, a, grants)
end
local entry = journal(note, { "allocation:" .. id }, before, { state = becomes })
if ARGV[8] == "0" then leave_to_tick(grants) end
return answered(note, { "ok", before.state, grants, entry, becomes })
