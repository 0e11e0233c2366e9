-- Read allocations.
-- flags: no-writes
-- uses: base line describe
-- KEYS: prefix. ARGV from 5: what (id|task|waiting|delayed|held), then an id, a task id, or offset and count.
-- Reply: list of described allocations. Touches: nothing (reads alloc, tasks, waiting, delayed, held).
local what = ARGV[5]
local ids = {}
if what == "id" then
  ids[1] = ARGV[6]
elseif what == "task" then
  for id in string.gmatch(call("HGET", K.tasks, ARGV[6]) or "", "[^,]+") do ids[#ids + 1] = id end
else
  local set = what == "waiting" and K.waiting or what == "delayed" and K.delayed or K.held
  ids = call("ZRANGE", set, ARGV[6], ARGV[6] + ARGV[7] - 1)
end
local out = {}
for _, id in ipairs(ids) do
  local v = describe(id)
  if v then out[#out + 1] = v end
end
return out
