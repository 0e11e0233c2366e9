-- Library: find the device a strategy would take. Reads: index, order, node. Writes nothing.
-- need: g (GPU MB), c (cores), r (RAM MB), kind ("t" task, "m" by hand); id and run of who wants it (see kept_from).

-- The one gate that every candidate passes: whether `need` may go to dkey, whose own memory and slot the caller has looked
-- at. The node, once read, is kept in `cache`.
local function has_room(cache, dkey, need)
  local node = node_of(dkey)
  local n = cache[node]
  if not n then
    n = load_node(node)
    cache[node] = n
  end
  return n.c >= need.c and n.r >= need.r and not kept_from(dkey, n, need)
end

-- The scores in the index of what could have enough memory, and cores beside the least of it.
local function range_of(need)
  if need.g == 0 then return need.c - CPU, -CPU / 2 end
  return need.g * CORES + need.c, "+inf"
end

-- Best fit: walk the index upwards from the smallest score that could hold the request. The first found mostly does.
-- Returns the device and its member.
local function best_in(ix, need, cache)
  local low, high = range_of(need)
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
local function first_in(ix, need, cache)
  local what = need.g > 0 and "gpu" or "cpu"
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

-- The device with the least memory left, then the fewest free cores beside it, then the first; nil if none will do.
local function find_best(need, cache)
  local dkey, member = best_in("sched", need, cache)
  if need.kind ~= "m" then return dkey end
  local other, other_member = best_in("idle", need, cache)
  if not (other and dkey) then return dkey or other end
  local score = tonumber(call("ZSCORE", K.index .. "sched", member))
  local other_score = tonumber(call("ZSCORE", K.index .. "idle", other_member))
  return (other_score < score or (other_score == score and other_member < member)) and other or dkey
end

-- The earliest registered device that will do; nil if none.
local function find_first(need, cache)
  local dkey, ord = first_in("sched", need, cache)
  if need.kind ~= "m" then return dkey end
  local other, other_ord = first_in("idle", need, cache)
  return (other and (not dkey or other_ord < ord)) and other or dkey
end

-- What one node has free: c (cores), r (RAM MB), gpus: those that take work, in order of registration, each with dkey,
-- member, free (MB) and slot (whether a task may go there); cpu: the pseudo-device, likewise, or nil.
local function node_view(n)
  local view = { n = n, c = n.c, r = n.r, gpus = {}, most = { t = -1, m = -1 } }
  local fleet = fleet_of(n)
  for i = 1, #fleet, 4 do
    local ix = index_of(fleet[i + 1], fleet[i + 3])
    local dkey, free, slot = string.sub(fleet[i], 10), fleet[i + 2], ix == "sched"
    if ix == "" then -- takes nothing
    elseif kind_of(dkey) == "cpu" then
      view.cpu = { dkey = dkey, member = fleet[i], free = 0, slot = slot }
    else
      view.gpus[#view.gpus + 1] = { dkey = dkey, member = fleet[i], free = free, slot = slot }
      if slot and free > view.most.t then view.most.t = free end
      if free > view.most.m then view.most.m = free end
    end
  end
  return view
end

-- Here the strategies come in (see scripts.py): each file of strategies/ as the body of a function that returns it, and
-- `strategy_of(name)`. A strategy is a table with
--   score(view, devices, need): how good it is to place `need` on these devices of one node (`view`: the node before that,
--     see `node_view`); the largest wins, of equals the device that was registered first. It decides within a node, and
--     over all of them where there is no `find`.
--   find(need, cache), optional: the device it would take of all, found by an index; nil if none will do. Every device
--     that it comes to think of must have passed `has_room`.
-- It writes nothing.
-- strategies

-- Of one node's devices the one with the best score, of several the first: returns it and its score, or nil.
local function choose_in_view(view, need, strategy, cache)
  local best, most
  for _, device in ipairs(need.g > 0 and view.gpus or { view.cpu }) do
    if device.free >= need.g and (device.slot or need.kind == "m") and has_room(cache, device.dkey, need) then
      local score = strategy.score(view, { device }, need)
      if not best or score > most then best, most = device, score end
    end
  end
  return best, most
end

-- For a strategy without an index: score every device that could have room. Costs as much as there are such devices.
local function find_by_score(need, strategy, cache)
  local low, high = range_of(need)
  local best, most
  local looked = {}
  for _, ix in ipairs(need.kind == "m" and { "sched", "idle" } or { "sched" }) do
    for _, member in ipairs(call("ZRANGEBYSCORE", K.index .. ix, low, high)) do
      local dkey = string.sub(member, 10)
      local node = node_of(dkey)
      if not looked[node] and has_room(cache, dkey, need) then
        looked[node] = true
        local device, score = choose_in_view(node_view(cache[node]), need, strategy, cache)
        if device and (not best or score > most or (score == most and device.member < best.member)) then
          best, most = device, score
        end
      end
    end
  end
  return best and best.dkey
end

-- Returns the device and its node as `load_node` read it, or nil.
local function place(need, name)
  local cache, strategy = {}, strategy_of(name)
  local dkey
  if strategy.find then dkey = strategy.find(need, cache) else dkey = find_by_score(need, strategy, cache) end
  return dkey, dkey and cache[node_of(dkey)]
end
