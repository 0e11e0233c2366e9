-- Read an owner's live allocations, oldest first, or one of them.
-- flags: no-writes
-- uses: base index line limits runtimes tenants dates forecast describe
-- KEYS: prefix. ARGV from 5: owner, id ("": all of them).
-- Reply: list of described allocations. Touches: nothing (reads own, alloc).
local mine, one = K.own .. ARGV[5], ARGV[6]
local ids = { one }
if one == "" then
  ids = call("ZRANGE", mine, 0, -1)
elseif not call("ZSCORE", mine, one) then
  return {}
end
local out = {}
for _, id in ipairs(ids) do
  local v = describe(id)
  if v then out[#out + 1] = v end
end
return out
