-- Change the priority of an allocation that has not been granted: its place in line follows.
-- flags: allow-oom
-- uses: base events journal cores index line runtimes tenants dates claim
-- KEYS: prefix. ARGV from 5: id, priority, note (see _journal) or "".
-- Nothing is granted by that: who comes to the head of a line did not fit before, either.
-- Reply: {"ok", former priority, entry} | {"gone"} | {"granted", state} | what _journal refuses with.
-- Touches: alloc, waiting, line, turn, shapes, queued, reserved, aside, events, journal.
local id, priority, note = ARGV[5], tonumber(ARGV[6]), read_note(ARGV[7])
local no = refused(note)
if no then return no end
local a = load_alloc(id)
if not a or a.state == "released" then return { "gone" } end
if a.state == "granted" or a.state == "running" then return { "granted", a.state } end
local was = tonumber(call("HGET", K.alloc .. id, "prio"))
local score = line_score(priority, tonumber(call("HGET", K.alloc .. id, "arr")))
if a.state == "waiting" then dequeue(id, a) end
call("HSET", K.alloc .. id, "prio", priority, "score", score)
a.score = score
if a.state == "waiting" then enqueue(id, a) end
call("ZADD", K.aside .. a.name, "XX", score, id)
event("priority", id, a.tid, "name", a.name, "priority", priority)
local entry = journal(note, { "allocation:" .. id }, { priority = was }, { priority = priority })
return answered(note, { "ok", was, entry })
