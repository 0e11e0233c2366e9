-- Put an allocation that waits or is delayed on hold: it keeps its place, and is not granted. Or let it go on.
-- flags: allow-oom
-- uses: base events journal cores index place line claim breaker pass
-- KEYS: prefix. ARGV from 5: id, what ("hold"|"unhold"), by (who holds it: "operator"), publish ("1"|"0", as in release),
--   note (see _journal) or "".
-- Its expiry and, if it was made by hand, its TTL go on while it is on hold.
-- Reply: {"ok", former state, grants, entry} | {"gone"} | {"state", state} when that cannot be done in its state | what
-- _journal refuses with. Touches: alloc, onhold, delayed, events, journal and all that dequeue and pass touch.
local id, what, note = ARGV[5], ARGV[6], read_note(ARGV[9])
local no = refused(note)
if no then return no end
local a = load_alloc(id)
if not a or a.state == "released" then return { "gone" } end
local grants, becomes = {}, "on_hold"
if what == "hold" then
  if a.state ~= "waiting" and a.state ~= "delayed" then return { "state", a.state } end
  hold(id, a, ARGV[7])
else
  if a.state ~= "on_hold" then return { "state", a.state } end
  becomes = unhold(id, a, grants)
end
local entry = journal(note, { "allocation:" .. id }, { state = a.state }, { state = becomes })
if ARGV[8] == "0" then leave_to_tick(grants) end
return { "ok", a.state, grants, entry }
