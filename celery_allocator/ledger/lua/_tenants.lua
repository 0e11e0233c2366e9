-- Library: tenants, what they use and may use, and whose turn it is. Touches: used, quotas, classes (read), queued, turn, meta (read).
-- A tenant's dominant share is the largest of the shares it has of all GPU memory, cores and RAM, divided by its weight. The
-- tenant whose is smallest comes first: dominant resource fairness (Ghodsi et al.: NSDI 2011). "" stands for all that name
-- none.
-- often: use_of charge has_caps capped

-- What tenants used before they gave something back in this script.
local eased = {}

local function use_of(text)
  local g, c, r, n = string.match(text or "", "^(%-?%d+) (%-?%d+) (%-?%d+) (%-?%d+)$")
  return { g = tonumber(g or 0), c = tonumber(c or 0), r = tonumber(r or 0), n = tonumber(n or 0) }
end

-- Add what an allocation takes (sign 1) to what its tenant uses, or take it off (−1).
local function charge(tenant, need, sign)
  local text = call("HGET", K.used, tenant)
  local u, k = use_of(text), sign * (need.k or 1)
  if sign < 0 and not eased[tenant] then eased[tenant] = use_of(text) end
  u.g, u.c, u.r, u.n = u.g + k * need.g, u.c + sign * need.c, u.r + sign * need.r, u.n + sign
  if u.n <= 0 then
    call("HDEL", K.used, tenant)
  else
    call("HSET", K.used, tenant, string.format("%.0f %.0f %.0f %.0f", u.g, u.c, u.r, u.n))
  end
end

-- What an operator or the settings say of a tenant, as recorded: weight, gpu_memory_mb, cpu_cores, ram_mb, tasks. What is
-- no number is not said.
local function read_quota(text)
  local ok, q = pcall(cjson.decode, text or "{}")
  local out = {}
  for name, value in pairs(ok and type(q) == "table" and q or {}) do if type(value) == "number" then out[name] = value end end
  return out
end

local quotas_read = {}
local function quota_of(tenant)
  if quotas_read[tenant] == nil then quotas_read[tenant] = read_quota(call("HGET", K.quotas, tenant)) end
  return quotas_read[tenant]
end

local function has_caps(tenant)
  local q = tenant ~= "" and quota_of(tenant)
  return q and (q.gpu_memory_mb or q.cpu_cores or q.ram_mb or q.tasks) and true or false
end

-- GPU MB that `need` takes at least, of each GPU: where it asks for a share, of the smallest one that could hold it.
local function least_of(need)
  if not need.s then return need.g end
  if not need.smallest then
    for _, class in ipairs(call("HKEYS", K.classes)) do
      local mem = tonumber(string.match(class, "^(%d+):")) or 0
      if mem > 0 and mem >= need.least then
        need.smallest = math.min(need.smallest or math.huge, math.max(need.least, math.ceil(mem * need.s / 1000)))
      end
    end
    need.smallest = need.smallest or need.g
  end
  return need.smallest
end

-- The first dimension in which a tenant would be above its cap with `need` more, and the cap; nil if none is.
local function capped(tenant, need, u)
  if not has_caps(tenant) then return nil end
  local q = quota_of(tenant)
  u = u or use_of(call("HGET", K.used, tenant))
  if q.gpu_memory_mb and u.g + least_of(need) * (need.k or 1) > q.gpu_memory_mb then return "gpu_memory_mb", q.gpu_memory_mb end
  if q.cpu_cores and u.c + need.c > q.cpu_cores then return "cpu_cores", q.cpu_cores end
  if q.ram_mb and u.r + need.r > q.ram_mb then return "ram_mb", q.ram_mb end
  if q.tasks and u.n + 1 > q.tasks then return "tasks", q.tasks end
end

local function totals()
  local v = call("HMGET", K.meta, "all_g", "all_c", "all_r")
  return { g = math.max(1, v[1] or 1), c = math.max(1, v[2] or 1), r = math.max(1, v[3] or 1) }
end

local function share_of(u, q, all)
  local weight = q.weight or 1
  return math.max(u.g / all.g, u.c / all.c, u.r / all.r) / (weight > 0 and weight or 1)
end

-- Tenants that wait, one after the other in the order of their turns: by share; of equals those first that have not just given
-- something back (else who floods a single device would get it again each time that it is free); then by who came first. only: one
-- of them, alone. Mostly nobody asks for the second, so that the others are put in order only then.
local function turns(only)
  local names = only and { only } or call("SMEMBERS", K.queued)
  local all, shares, before, firsts, taken = #names > 1 and totals(), {}, {}, {}, 0
  for from = 1, all and #names or 0, 500 do
    local some = { unpack(names, from, math.min(#names, from + 499)) }
    local used, quotas = call("HMGET", K.used, unpack(some)), call("HMGET", K.quotas, unpack(some))
    for i, name in ipairs(some) do
      local q = quotas[i] and read_quota(quotas[i]) or {}
      shares[name] = share_of(use_of(used[i]), q, all)
      before[name] = eased[name] and share_of(eased[name], q, all) or shares[name]
    end
  end
  local function first(name)
    if not firsts[name] then firsts[name] = tonumber(call("ZRANGE", K.turn .. name, 0, 0, "WITHSCORES")[2] or 0) end
    return firsts[name]
  end
  local function precedes(x, y)
    if shares[x] ~= shares[y] then return shares[x] < shares[y] end
    if before[x] ~= before[y] then return before[x] < before[y] end
    local a, b = first(x), first(y)
    if a ~= b then return a < b end
    return x < y
  end
  return function()
    taken = taken + 1
    if taken == 2 then table.sort(names, precedes) end
    if taken > 1 then return names[taken - 1] end
    local at = 1
    for i = 2, #names do if precedes(names[i], names[at]) then at = i end end
    return table.remove(names, at)
  end
end

-- What a node offers as it is now, for `use_of`.
local function offer_of(node)
  local v = call("HMGET", K.node .. node, "own", "ram", "devs")
  local g, c, r = 0, 0, 0
  if v[1] and call("ZSCORE", K.nodes, node) then
    local _, cores = string.gsub(v[1], "%d", "")
    c, r = cores, tonumber(v[2])
    for _, device in ipairs(split(v[3])) do
      local d = call("HMGET", K.dev .. node .. "/" .. device, "mem", "live")
      if d[2] == "1" then g = g + tonumber(d[1] or 0) end
    end
  end
  return string.format("%.0f %.0f %.0f 0", g, c, r)
end

-- Count that in what all nodes offer together.
local function count_node(node)
  local counted, was = offer_of(node), call("HGET", K.node .. node, "counted")
  if counted == was then return end
  local before, is = use_of(was), use_of(counted)
  call("HINCRBY", K.meta, "all_g", is.g - before.g)
  call("HINCRBY", K.meta, "all_c", is.c - before.c)
  call("HINCRBY", K.meta, "all_r", is.r - before.r)
  call("HSET", K.node .. node, "counted", counted)
end
