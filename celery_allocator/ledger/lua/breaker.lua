-- Set the circuit breaker of a task name, or close it; what it set aside goes on as far as it lets it.
-- flags: allow-oom
-- uses: base events journal cores index line limits runtimes tenants dates claim breaker reserve place forecast pass
-- KEYS: prefix. ARGV from 5: task name, how many more may be granted ("": any number, it is closed), what its keeper remembers
--   of it (JSON, "": nothing), batch size, publish ("1"|"0", as in release), note (see _journal) or "".
-- Reply: {"ok", grants, how many are still set aside, entry} | what _journal refuses with. Touches: breakers, breaker, aside,
-- onhold, events, journal and all that unhold touches.
local name, allows, memory, note = ARGV[5], ARGV[6], ARGV[7], read_note(ARGV[10])
local no = refused(note)
if no then return no end
local was = { allows = call("HGET", K.breakers, name) or "", memory = call("HGET", K.breaker, name) or "" }
if is_closing(was.allows ~= "" and was.allows) then was.allows = "" end
if allows == "" then call("HDEL", K.breakers, name) else call("HSET", K.breakers, name, allows) end
if memory == "" then call("HDEL", K.breaker, name) else call("HSET", K.breaker, name, memory) end
if (was.allows == "") ~= (allows == "") or note then
  event("breaker", name, "", "state", allows == "" and "closed" or tonumber(allows) > 0 and "half-open" or "open")
end
local entry = journal(note, { "breaker:" .. name }, was, { allows = allows, memory = memory })
local grants, batch = {}, tonumber(ARGV[8])
local left = let_go(name, allows == "" and batch or math.min(batch, tonumber(allows)), grants)
if allows == "" and left > 0 then call("HSET", K.breakers, name, CLOSING) end
if ARGV[9] == "0" then leave_to_tick(grants) end
return answered(note, { "ok", grants, left, entry })
