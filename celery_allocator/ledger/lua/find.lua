-- Read allocations.
-- flags: no-writes
-- uses: base index line limits runtimes tenants dates forecast describe
-- KEYS: prefix. ARGV from 5: what (id|task|waiting|delayed|on_hold|held), then an id, a task id, or offset and count.
-- Reply: list of described allocations. Touches: nothing (reads alloc, tasks, waiting, delayed, onhold, held).
local what = ARGV[5]
local ids = {}
if what == "id" then
  ids[1] = ARGV[6]
elseif what == "task" then
  for id in string.gmatch(call("HGET", K.tasks, ARGV[6]) or "", "[^,]+") do ids[#ids + 1] = id end
else
  local sets = { waiting = K.waiting, delayed = K.delayed, on_hold = K.onhold, held = K.held }
  ids = call("ZRANGE", sets[what], ARGV[6], ARGV[6] + ARGV[7] - 1)
end
local out = {}
for _, id in ipairs(ids) do
  local v = describe(id)
  if v then out[#out + 1] = v end
end
return out
