-- The results of ended tasks have been written: forget their records, but for those of messages that are parked.
-- flags: allow-oom
-- uses: base events
-- KEYS: prefix. ARGV from 5: ids.
-- Reply: how many results were written. Touches: obits, alloc, tomb, parked (read), events.
local n = 0
for i = 5, #ARGV do
  local id = ARGV[i]
  if call("ZREM", K.obits, id) == 1 then
    local v = call("HMGET", K.alloc .. id, "outcome", "tid")
    if not call("ZSCORE", K.parked, id) then
      call("SET", K.tomb .. id, v[1] or "ended", "PX", 120000)
      call("DEL", K.alloc .. id)
    end
    event("settled", id, v[2] or "", "outcome", v[1] or "ended")
    n = n + 1
  end
end
return n
