-- The results of ended tasks have been written: forget their records.
-- flags: allow-oom
-- uses: base events
-- KEYS: prefix. ARGV from 5: ids.
-- Reply: how many were forgotten. Touches: obits, alloc, tomb, events.
local n = 0
for i = 5, #ARGV do
  if call("ZREM", K.obits, ARGV[i]) == 1 then
    local v = call("HMGET", K.alloc .. ARGV[i], "outcome", "tid")
    call("SET", K.tomb .. ARGV[i], v[1] or "ended", "PX", 120000)
    call("DEL", K.alloc .. ARGV[i])
    event("settled", ARGV[i], v[2] or "", "outcome", v[1] or "ended")
    n = n + 1
  end
end
return n
