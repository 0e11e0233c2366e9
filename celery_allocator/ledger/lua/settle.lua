-- The results of ended tasks have been written: forget their records.
-- uses: base
-- KEYS: prefix. ARGV from 5: ids.
-- Reply: how many were forgotten. Touches: obits, alloc, tomb.
local n = 0
for i = 5, #ARGV do
  if call("ZREM", K.obits, ARGV[i]) == 1 then
    call("SET", K.tomb .. ARGV[i], call("HGET", K.alloc .. ARGV[i], "outcome") or "ended", "PX", 120000)
    call("DEL", K.alloc .. ARGV[i])
    n = n + 1
  end
end
return n
