-- Move an allocation that has not been granted before the first in line; or back to a place that it had.
-- flags: allow-oom
-- uses: base events journal cores index line limits runtimes tenants dates claim move
-- KEYS: prefix. ARGV from 5: id, score of the place to give it ("": before the first), note (see _journal) or "".
-- A redo takes the place it had, if nobody has it now. A larger priority that comes later goes before it. Which tenant's turn
-- it is does not change. Nothing is granted by that: who comes to the head of a line did not fit before, either.
-- Reply: {"ok", state, number in line before and after (0: not in line), entry} | {"gone"} | {"granted", state} | what _journal
-- refuses with. Touches: alloc, waiting, line, turn, shapes, queued, reserved, aside, events, journal.
local id, score, note = ARGV[5], ARGV[6], read_note(ARGV[7])
local no = refused(note)
if no then return no end
local a = load_alloc(id)
if not a or a.state == "released" then return { "gone" } end
if a.state == "granted" or a.state == "running" then return { "granted", a.state } end
local function number_in_line() return (call("ZRANK", K.waiting, id) or -1) + 1 end
local was, left = number_in_line(), a.score
if score ~= "" and note and note.way == "redo" and call("ZRANGEBYSCORE", K.waiting, score, score)[1] then score = "" end
if score == "" then
  local first = call("ZRANGE", K.waiting, 0, 0, "WITHSCORES")[2] or left
  local behind = was ~= 1 and tonumber(first) <= tonumber(left)
  score = behind and string.format("%.0f", first - 1 - first % 2) or left
end
move(id, a, score)
local is = number_in_line()
event("moved", id, a.tid, "name", a.name, "from", was, "position", is)
local entry = journal(note, { "allocation:" .. id }, { score = left }, { score = score })
return answered(note, { "ok", a.state, was, is, entry })
