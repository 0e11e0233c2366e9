-- Tenants that hold something, wait, or have a quota.
-- flags: no-writes
-- uses: base tenants
-- KEYS: prefix. ARGV from 5: nothing.
-- Reply: {GPU MB, cores and RAM MB of all nodes, tenants in alphabetical order}. tenant: {name, quota (JSON) or "", GPU MB, cores,
--   RAM MB and allocations held, dominant share divided by weight, how many wait}. Touches: nothing (reads used, quotas, queued,
--   turn, line, meta).
local names, all, seen = {}, totals(), {}
local function add(list)
  for _, name in ipairs(list) do
    if not seen[name] then seen[name] = true; names[#names + 1] = name end
  end
end
add(call("HKEYS", K.used))
add(call("HKEYS", K.quotas))
add(call("SMEMBERS", K.queued))
table.sort(names)
local out = {}
for i, name in ipairs(names) do
  local u, waiting = use_of(call("HGET", K.used, name)), 0
  for _, lane in ipairs(call("ZRANGE", K.turn .. name, 0, -1)) do waiting = waiting + call("ZCARD", K.line .. lane) end
  out[i] = { name, call("HGET", K.quotas, name) or "", u.g, u.c, u.r, u.n, string.format("%.9g", share_of(u, quota_of(name), all)),
    waiting }
end
return { all.g, all.c, all.r, out }
