-- Change the priority of an allocation that has not been granted: its place in line follows.
-- flags: allow-oom
-- uses: base events journal cores index line limits runtimes tenants dates claim move
-- KEYS: prefix. ARGV from 5: id, priority, note (see _journal) or "", score of the place to give it ("": that of the priority).
-- What was moved to the front leaves it for the place of its new priority. Nothing is granted by that: who comes to the head
-- of a line did not fit before, either.
-- Reply: {"ok", former priority, entry} | {"gone"} | {"granted", state} | what _journal refuses with.
-- Touches: alloc, waiting, line, turn, shapes, queued, reserved, aside, events, journal.
local id, priority, note, score = ARGV[5], tonumber(ARGV[6]), read_note(ARGV[7]), ARGV[8]
local no = refused(note)
if no then return no end
local a = load_alloc(id)
if not a or a.state == "released" then return { "gone" } end
if a.state == "granted" or a.state == "running" then return { "granted", a.state } end
local v = call("HMGET", K.alloc .. id, "prio", "arr")
local was, arr = tonumber(v[1]), tonumber(v[2])
local before = { priority = was }
if tonumber(a.score) ~= line_score(was, arr) then before.score = a.score end
call("HSET", K.alloc .. id, "prio", priority)
move(id, a, score ~= "" and score or line_score(priority, arr))
event("priority", id, a.tid, "name", a.name, "priority", priority)
local entry = journal(note, { "allocation:" .. id }, before, { priority = priority })
return answered(note, { "ok", was, entry })
