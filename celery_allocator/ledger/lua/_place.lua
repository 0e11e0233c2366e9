-- Library: find the device a strategy would take. Reads: index, order, node. Writes nothing.
-- need: g (GPU MB), c (cores), r (RAM MB), kind ("t" task, "m" by hand).
local function room(cache, node, need)
  local v = cache[node]
  if not v then
    v = call("HMGET", K.node .. node, "cfree", "rfree")
    v[1], v[2] = tonumber(v[1]), tonumber(v[2])
    cache[node] = v
  end
  return v[1] >= need.c and v[2] >= need.r
end

-- Best fit: walk the index upwards from the smallest score that could hold the request.
local function best_in(ix, what, need, cache)
  local low = need.g * CORES + need.c
  local offset, chunk = 0, 8
  while true do
    local found = call("ZRANGEBYSCORE", K.index .. ix .. ":" .. what, low, "+inf", "WITHSCORES", "LIMIT", offset, chunk)
    for i = 1, #found, 2 do
      local dkey = string.sub(found[i], 10)
      if room(cache, node_of(dkey), need) then return dkey, tonumber(found[i + 1]), found[i] end
    end
    if #found < chunk * 2 then return nil end
    offset = offset + chunk
    chunk = 256
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
      local scores = (b == own and what == "gpu") and call("ZMSCORE", K.index .. ix .. ":gpu", unpack(found)) or nil
      for i, member in ipairs(found) do
        local ord = string.sub(member, 1, 8)
        if best_ord and ord >= best_ord then done = true; break end
        local dkey = string.sub(member, 10)
        if (not scores or floor(scores[i] / CORES) >= need.g) and room(cache, node_of(dkey), need) then
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

local function place(need, strategy)
  local what = need.g > 0 and "gpu" or "cpu"
  local cache = {}
  if strategy == "first_fit" then
    local dkey, ord = first_in("sched", what, need, cache)
    if need.kind == "m" then
      local other, other_ord = first_in("idle", what, need, cache)
      if other and (not dkey or other_ord < ord) then dkey = other end
    end
    return dkey
  end
  local dkey, score, member = best_in("sched", what, need, cache)
  if need.kind == "m" then
    local other, other_score, other_member = best_in("idle", what, need, cache)
    if other and (not dkey or other_score < score or (other_score == score and other_member < member)) then dkey = other end
  end
  return dkey
end
