-- Library: find the device a strategy would take. Reads: index, order, node. Writes nothing.
-- need: g (GPU MB), c (cores), r (RAM MB), kind ("t" task, "m" by hand); id and run of who wants it (see kept_from).
-- The node, once read, is kept in `cache`. Every candidate comes through here.
local function has_room(cache, dkey, need)
  local node = node_of(dkey)
  local n = cache[node]
  if not n then
    n = load_node(node)
    cache[node] = n
  end
  return n.c >= need.c and n.r >= need.r and not kept_from(dkey, n, need)
end

-- Best fit: walk the index upwards from the smallest score that could hold the request. The first found mostly does.
-- Returns the device and its member.
local function best_in(ix, what, need, cache)
  local low, high = need.g * CORES + need.c, "+inf"
  if what == "cpu" then low, high = need.c - CPU, -CPU / 2 end
  local offset, chunk = 0, 1
  while true do
    local found = call("ZRANGEBYSCORE", K.index .. ix, low, high, "LIMIT", offset, chunk)
    for _, member in ipairs(found) do
      local dkey = string.sub(member, 10)
      if has_room(cache, dkey, need) then return dkey, member end
    end
    if #found < chunk then return nil end
    offset = offset + chunk
    chunk = chunk == 1 and 16 or 256
  end
end

-- First fit: the earliest registered device that fits. In sets above the request's own power of two every member has
-- enough memory, so its first member with enough cores and RAM will do; in the request's own set memory is looked up.
local function first_in(ix, what, need, cache)
  local best, best_ord
  local own = bucket(what, need.g)
  local last = what == "cpu" and 0 or 21
  for b = own, last do
    local offset, chunk, done = 0, 8, false
    while not done do
      local found = call("ZRANGE", K.order .. ix .. ":" .. what .. ":" .. b, offset, offset + chunk - 1)
      if #found == 0 then break end
      local scores = (b == own and what == "gpu") and call("ZMSCORE", K.index .. ix, unpack(found)) or nil
      for i, member in ipairs(found) do
        local ord = string.sub(member, 1, 8)
        if best_ord and ord >= best_ord then done = true; break end
        local dkey = string.sub(member, 10)
        if (not scores or floor(scores[i] / CORES) >= need.g) and has_room(cache, dkey, need) then
          best, best_ord, done = dkey, ord, true
          break
        end
      end
      if #found < chunk then break end
      offset = offset + chunk
      chunk = 256
    end
  end
  return best, best_ord
end

-- Returns the device and its node as `load_node` read it, or nil.
local function place(need, strategy)
  local what = need.g > 0 and "gpu" or "cpu"
  local cache = {}
  if strategy == "first_fit" then
    local dkey, ord = first_in("sched", what, need, cache)
    if need.kind == "m" then
      local other, other_ord = first_in("idle", what, need, cache)
      if other and (not dkey or other_ord < ord) then dkey = other end
    end
    return dkey, dkey and cache[node_of(dkey)]
  end
  local dkey, member = best_in("sched", what, need, cache)
  if need.kind == "m" then
    local other, other_member = best_in("idle", what, need, cache)
    if other and dkey then
      local score = tonumber(call("ZSCORE", K.index .. "sched", member))
      local other_score = tonumber(call("ZSCORE", K.index .. "idle", other_member))
      if other_score < score or (other_score == score and other_member < member) then dkey = other end
    else
      dkey = dkey or other
    end
  end
  return dkey, dkey and cache[node_of(dkey)]
end
