-- An operator stops all granting in the pool, or resumes it. What is granted already starts and runs.
-- flags: allow-oom
-- uses: base events journal cores index line limits runtimes tenants dates claim breaker reserve place forecast pass epoch
-- KEYS: prefix. ARGV from 5: "1" to stop or "0" to resume, publish ("1"|"0", as in release), note (see _journal) or "".
-- Reply: {"ok", "1"|"0" as it was, grants, entry} | what _journal refuses with. Touches: meta, dev, node, index, order, events,
-- journal and all that pass touches.
local note = read_note(ARGV[7])
local no = refused(note)
if no then return no end
local was, grants = call("HEXISTS", K.meta, "stopped"), {}
local stop = ARGV[5] == "1"
if stop ~= (was == 1) then
  if stop then
    call("HSET", K.meta, "stopped", NOW)
    event("paused", "", "", "until", "", "by", "operator")
  else
    call("HDEL", K.meta, "stopped")
    event("resumed", "", "", "by", "operator")
  end
  reindex_all()
end
local entry = journal(note, { "pool" }, { paused = was == 1 }, { paused = stop })
if not stop then pass_all(grants) end
if ARGV[6] == "0" then leave_to_tick(grants) end
return answered(note, { "ok", tostring(was), grants, entry })
