-- Look for allocations in a stretch of the line.
-- flags: no-writes
-- uses: base index line limits runtimes tenants dates forecast describe
-- KEYS: prefix. ARGV from 5: part of a name, a task's id or an allocation's id in small letters ("": any), tenant ("": any),
--   places in line to pass over, and to look at; of those that are meant, how many to pass over, and to describe.
-- Reply: {how many were looked at, how many of them are meant, list of described allocations}.
-- Touches: nothing (reads waiting, alloc).
local text, tenant, skip, most = ARGV[5], ARGV[6], tonumber(ARGV[9]), tonumber(ARGV[10])

local function has(word) return word and string.find(string.lower(word), text, 1, true) end

local ids = call("ZRANGE", K.waiting, ARGV[7], ARGV[7] + ARGV[8] - 1)
local meant, out = 0, {}
for _, id in ipairs(ids) do
  local v = call("HMGET", K.alloc .. id, "name", "tid", "tenant")
  if (tenant == "" or v[3] == tenant) and (text == "" or has(v[1]) or has(v[2]) or has(id)) then
    meant = meant + 1
    if meant > skip and #out < most then out[#out + 1] = describe(id) or nil end
  end
end
return { #ids, meant, out }
