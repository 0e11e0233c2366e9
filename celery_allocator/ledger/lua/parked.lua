-- Messages that were parked, oldest first.
-- flags: no-writes
-- uses: base
-- KEYS: prefix. ARGV from 5: offset, count.
-- Reply: list of {id, task id, task name, reason, when ms, message}. Touches: nothing (reads parked, alloc).
local out = {}
local found = call("ZRANGE", K.parked, ARGV[5], ARGV[5] + ARGV[6] - 1, "WITHSCORES")
for i = 1, #found, 2 do
  local v = call("HMGET", K.alloc .. found[i], "tid", "name", "reason", "msg")
  out[#out + 1] = { found[i], v[1] or "", v[2] or "", v[3] or "", found[i + 1], v[4] or "" }
end
return out
