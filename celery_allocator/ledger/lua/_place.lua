-- Library: find the device a strategy would take. Reads: index, order, node. Writes nothing.
-- need: as need_of made it, with id and run of who wants it (see kept_from). Where a share is asked for, g becomes what that
-- comes to on the device that is chosen.
-- often: count_fitting has_room range_of best_in find_best strategy_of place settle

-- How many devices of a node (at most as many as `need` wants) it could be placed on. 1 where it wants one: the caller has
-- looked at that.
local function count_fitting(n, need)
  local count, at, fleet = 0, 1, need.k and need.k > 1 and fleet_of(n)
  if not fleet then return 1 end
  while fleet[at] and count < need.k do
    local ix = index_of(fleet[at + 1], fleet[at + 3])
    local takes = (ix == "sched" or (ix == "idle" and need.kind == "m")) and kind_of(fleet[at]) == "gpu"
    local dkey = takes and fleet[at + 2] >= amount(need, n, at) and string.sub(fleet[at], 10)
    if dkey and matches(dkey, need) and not kept_from(dkey, n, need) then count = count + 1 end
    at = at + 4
  end
  return count
end

-- The one gate that every candidate passes: whether `need` may go to dkey, whose own memory and slot the caller has looked
-- at. The node, once read, is kept in `cache`.
local function has_room(cache, dkey, need)
  local node = node_of(dkey)
  local n = cache[node]
  if not n then
    n = load_node(node)
    cache[node] = n
  end
  return n.c >= need.c and n.r >= need.r and may_go(dkey, n, need) and not kept_from(dkey, n, need)
    and (need.k or 1) <= count_fitting(n, need)
end

-- The scores in the index of what could have enough of it.
local function range_of(need)
  if not need.gpu then return need.c - CPU, -CPU / 2 end
  return (need.least or need.g) * NODES, "+inf"
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
        if (not scores or floor(scores[i] / NODES) >= need.g) and has_room(cache, dkey, need) then
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

-- The other way round: walk the index downwards. Of those with the same score the first registered. Returns the device, its
-- member and its score.
local function emptiest_in(ix, need, cache)
  local low, high = range_of(need)
  local offset, chunk = 0, 1
  while true do
    local found = call("ZREVRANGEBYSCORE", K.index .. ix, high, low, "WITHSCORES", "LIMIT", offset, chunk)
    for i = 1, #found, 2 do
      if has_room(cache, string.sub(found[i], 10), need) then
        local score, from, some = found[i + 1], 0, 4
        local same = found
        while #same > 0 do
          same = call("ZRANGEBYSCORE", K.index .. ix, score, score, "LIMIT", from, some)
          for _, member in ipairs(same) do
            local dkey = string.sub(member, 10)
            if has_room(cache, dkey, need) then return dkey, member, tonumber(score) end
          end
          from, some = from + some, 256
        end
      end
    end
    if #found < 2 * chunk then return nil end
    offset = offset + chunk
    chunk = chunk == 1 and 16 or 256
  end
end

-- The device with the least memory left, then the node with least free in all, then the first; nil if none will do.
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

-- Of work without a GPU: the node with the most free cores, of equals the first. Looks at all nodes.
local function find_most_cores(need, cache)
  local low, high = range_of(need)
  local best, most
  for _, ix in ipairs(need.kind == "m" and { "sched", "idle" } or { "sched" }) do
    for _, member in ipairs(call("ZRANGEBYSCORE", K.index .. ix, low, high)) do
      local dkey = string.sub(member, 10)
      if has_room(cache, dkey, need) then
        local cores = cache[node_of(dkey)].c
        if not best or cores > most or (cores == most and member < best) then best, most = member, cores end
      end
    end
  end
  return best and string.sub(best, 10)
end

-- The device with the most memory left, then the node with most free in all, then the first; nil if none will do.
local function find_emptiest(need, cache)
  if not need.gpu then return find_most_cores(need, cache) end
  local dkey, member, score = emptiest_in("sched", need, cache)
  if need.kind ~= "m" then return dkey end
  local other, other_member, other_score = emptiest_in("idle", need, cache)
  if not (other and dkey) then return dkey or other end
  return (other_score > score or (other_score == score and other_member < member)) and other or dkey
end

-- What one node (of which c, r, fleet and mems are read) has free. c: cores, r: RAM (MB). Of its GPUs that take work, in order
-- of registration: free and mem (MB each has left, and has in all), slot (whether a task may go there), at (where it stands
-- in the fleet). cpu: where the pseudo-device stands, if it takes work, cpu_slot. most: the largest free amount by kind.
local function node_view(n)
  local view = { n = n, c = n.c, r = n.r, free = {}, mem = {}, slot = {}, at = {}, most = { t = -1, m = -1 } }
  local fleet, mems = fleet_of(n), capacities_of(n)
  local most, count = view.most, 0
  for at = 1, #fleet, 4 do
    local ix = index_of(fleet[at + 1], fleet[at + 3])
    if ix == "" then -- takes nothing
    elseif kind_of(fleet[at]) == "cpu" then
      view.cpu, view.cpu_slot = at, ix == "sched"
    else
      local free, slot = fleet[at + 2], ix == "sched"
      count = count + 1
      view.free[count], view.slot[count], view.at[count] = free, slot, at
      view.mem[count] = mems[(at + 3) / 4] or tonumber(call("HGET", K.dev .. string.sub(fleet[at], 10), "mem")) or 0
      if slot and free > most.t then most.t = free end
      if free > most.m then most.m = free end
    end
  end
  return view
end

-- What one step of nearness of several GPUs is worth beside a strategy's score: more than any of the package's.
local NEARNESS = 17592186044416

-- Here the strategies come in (see scripts.py): each file of strategies/ as the body of a function that returns it, and
-- `strategy_of(name)`. A strategy is a table with
--   score(view, taken, need): how good it is to place `need` on these of a node's GPUs (`view`: the node before that, see
--     `node_view`; `taken`: places in its lists, none for CPU-only work). The largest wins, of equals what was registered
--     first. It depends on amounts alone, so that of equal GPUs one is asked about. It decides within a node, and over all of
--     them where there is no `find`.
--   find(need, cache), optional: the device it would take of all, found by an index; nil if none will do. Every device
--     that it comes to think of must have passed `has_room`.
--   blind, optional: true if the score does not depend on RAM, so that nodes which differ in that alone are worked out once.
--   learn(need), optional: called once for each submission under this strategy that is taken.
-- Both others write nothing.
-- strategies

-- Of GPUs in a list as many as `need` wants, and how near these are to each other: where links are known, grown from each in
-- turn by the one nearest to all that are taken (of equals the earlier in the list), the nearest of these groups; else the
-- first. Not always the nearest there is: with links as machines have them (pairs, rings, islands), it is.
local function nearest_of(candidates, need, ids, links)
  local most, group = -1, nil
  local function link(x, y)
    local a, b = ids[x], ids[y]
    return links[a < b and a .. " " .. b or b .. " " .. a] or 0
  end
  for from = 1, next(links) and #candidates or 1 do
    local taken, rest, total = { candidates[from] }, {}, 0
    for i, other in ipairs(candidates) do if i ~= from then rest[#rest + 1] = other end end
    while #taken < need.k do
      local best, nearest = 1, -1
      for i, other in ipairs(rest) do
        local sum = 0
        for _, one in ipairs(next(links) and taken or {}) do sum = sum + link(one, other) end
        if sum > nearest then best, nearest = i, sum end
      end
      total = total + math.max(0, nearest)
      taken[#taken + 1] = table.remove(rest, best)
    end
    if total > most then most, group = total, taken end
  end
  return group, most
end

-- Of one node's GPUs as many as `need` wants: where links are known those that are nearest to each other, else those that score
-- best one by one. A share is one of GPUs that are equally large. `need.on` becomes their list. Returns where
-- the first of them stands in the fleet, and the score of all together; nil if they are too few, or not better(score, at).
-- How near they are goes before what the strategy says.
local function choose_several(view, need, strategy, cache, better)
  local fleet, by_size, sizes, ids, takes = fleet_of(view.n), {}, {}, {}, {}
  for i, free in ipairs(view.free) do
    need.g = amount(need, view.n, view.at[i])
    local dkey = string.sub(fleet[view.at[i]], 10)
    local fits = free >= need.g and (view.slot[i] or need.kind == "m") and matches(dkey, need)
    if fits and (not cache or has_room(cache, dkey, need)) then
      local size = need.s and view.mem[i] or 0
      takes[size] = need.g
      if not by_size[size] then by_size[size], sizes[#sizes + 1] = {}, size end
      local list = by_size[size]
      list[#list + 1] = { i = i, score = strategy.score(view, { i }, need) }
      ids[i] = string.match(dkey, "/(.*)$")
    end
  end
  local links, taken, score = links_of(view.n.name), nil, nil
  for _, size in ipairs(sizes) do
    local scored = by_size[size]
    if #scored >= need.k then
      table.sort(scored, function(x, y) return x.score > y.score or (x.score == y.score and x.i < y.i) end)
      local candidates = {}
      for j, one in ipairs(scored) do candidates[j] = one.i end
      local group, near = nearest_of(candidates, need, ids, links)
      table.sort(group)
      need.g = takes[size]
      local theirs = strategy.score(view, group, need) + near * NEARNESS
      if not score or theirs > score then taken, score = group, theirs end
    end
  end
  need.g = need.least or need.g
  if not taken then return nil end
  local on = {}
  if not better(score, view.at[taken[1]]) then return nil end
  for j, i in ipairs(taken) do on[j] = string.sub(fleet[view.at[i]], 10) end
  if cache then need.on = on end
  return view.at[taken[1]], score
end

-- Of one node's devices the one with the best score, of several the first: returns where it stands in the fleet, and its
-- score; nil if none has room. most, member: only what is better than that, or as good and registered earlier. cache: nil
-- leaves the gate to the caller.
local function choose_in_view(view, need, strategy, cache, most, member)
  local fleet = fleet_of(view.n)
  local function better(score, at) return not most or score > most or (score == most and fleet[at] < member) end
  local function room(at) return not cache or has_room(cache, string.sub(fleet[at], 10), need) end
  if not need.gpu then
    if not view.cpu or not (view.cpu_slot or need.kind == "m") then return nil end
    local score = strategy.score(view, {}, need)
    if better(score, view.cpu) and room(view.cpu) then return view.cpu, score end
    return nil
  end
  if need.k and need.k > 1 then return choose_several(view, need, strategy, cache, better) end
  local best, one, last = nil, {}, nil
  for i, free in ipairs(view.free) do
    need.g = amount(need, view.n, view.at[i])
    if free >= need.g and (view.slot[i] or need.kind == "m") and not (last and free == view.free[last] and view.mem[i] == view.mem[last]) then
      one[1], last = i, i
      local score = strategy.score(view, one, need)
      if better(score, view.at[i]) then
        if room(view.at[i]) then best, most, member = view.at[i], score, fleet[view.at[i]] else last = nil end
      end
    end
  end
  need.g = need.least or need.g
  return best, best and most
end

-- A place has been found: a share is so many MB there.
local function settle(need, n, dkey)
  if need.s then need.g = amount(need, n, find_in(fleet_of(n), dkey)) end
end

-- A node without what only a claim needs.
local function glance_at(node)
  local v = call("HMGET", K.node .. node, "cfree", "rfree", "fleet", "mems")
  return v[1] and { name = node, c = tonumber(v[1]), r = tonumber(v[2]), packed = v[3], mems = v[4] }
end

-- The nodes where devices could have enough memory: those of such devices where they are few, else all there are.
local function nodes_for(need)
  local low, high = range_of(need)
  local few, nodes, seen = 2 * call("SCARD", K.known), {}, {}
  for _, ix in ipairs(need.kind == "m" and { "sched", "idle" } or { "sched" }) do
    local found = call("ZRANGEBYSCORE", K.index .. ix, low, high, "LIMIT", 0, few)
    if #found == few then return call("SMEMBERS", K.known) end
    for _, member in ipairs(found) do
      local node = string.match(member, "|([^/]+)/")
      if not seen[node] then
        seen[node] = true
        nodes[#nodes + 1] = node
      end
    end
  end
  return nodes
end

-- For a strategy without an index: the best score of all devices. Costs as much as there are nodes that could do; of those in
-- the same state one is worked out.
local function find_by_score(need, strategy, cache)
  local dkey, most, member
  local known = {}
  for _, node in ipairs(nodes_for(need)) do
    local n = glance_at(node)
    if n and n.c >= need.c and n.r >= need.r then
      -- What the fleet says, but for the node's name and when its devices were registered.
      local state = string.gsub(n.packed, "%d%d%d%d%d%d%d%d|[^/]+/", "")
      local alike = need.limits and n.name or n.mems or n.name
      local key = table.concat({ n.c, strategy.blind and "" or n.r, alike, state }, "|")
      local choice = known[key]
      if choice == nil then
        local view = node_view(n)
        local at, score = choose_in_view(view, need, strategy)
        choice = at and { at = at, score = score } or false
        known[key] = choice
      end
      local first = choice and choice.score == most and string.match(n.packed, "%d%d%d%d%d%d%d%d|")
      if choice and (not most or choice.score > most or (first and first < member)) then
        local at, score = choose_in_view(node_view(n), need, strategy, cache, most, member)
        if at then
          most, member = score, fleet_of(n)[at]
          dkey = string.sub(member, 10)
        end
      end
    end
  end
  return dkey
end

-- Of devices where its word is loaded and that have room the one where it was used last. node: of that one alone. Where a
-- share is asked for, g becomes what that comes to there.
local function find_warm(need, cache, node)
  for _, dkey in ipairs(warm_devices(need.warm)) do
    local name = node_of(dkey)
    if (not node or name == node) and (kind_of(dkey) == "gpu") == need.gpu then
      local n = cache[name] or load_node(name)
      cache[name] = n
      local fleet = n and fleet_of(n)
      local at = n and find_in(fleet, dkey)
      if at and index_of(fleet[at + 1], fleet[at + 3]) == "sched" then
        need.g = amount(need, n, at)
        if fleet[at + 2] >= need.g and has_room(cache, dkey, need) then return dkey end
        need.g = need.least
      end
    end
  end
end

-- Whether it may have room in time where its word is loaded.
local function may_come(need, by)
  local devices, looked = warm_devices(need.warm), 0
  -- What began first ends first, as a rule.
  for i = #devices, 1, -1 do
    if (kind_of(devices[i]) == "gpu") == need.gpu then
      local left = outlook(need, devices[i])
      if left and (left.at <= by or left.at == math.huge) then return true end
      looked = looked + 1
      if looked == MOST_HOPES then return false end
    end
  end
  return false
end

-- Whether one that has room elsewhere waits on for a device where its word is loaded (delay scheduling: Zaharia et al.,
-- EuroSys 2010). Its lane does that for a time from the first that did; then not again before all have gone that stood in
-- it: so nobody waits for longer than that for this alone. If so, need.abides is until when (ms), and need.first whether it
-- is the first that does.
local function abides(need)
  if not affine(need) or BACKFILL == "none" then return false end
  local _, wait = warmth()
  if wait == 0 then return false end
  local by = tonumber(call("ZSCORE", K.patience, need.lane) or nil)
  local over = by and math.abs(by) <= now and math.abs(by)
  if over then
    local oldest = call("ZRANGE", K.patient .. need.lane, 0, 0, "WITHSCORES")[2]
    if oldest and tonumber(oldest) <= over then return false end
  end
  local first = not by or over
  if first then by = now + wait end
  if not may_come(need, by) then return false end
  need.abides, need.first = by, first
  return true
end

-- Of devices that are as good as dkey by the index one where nothing is loaded, else the one where that was used longest ago:
-- what is loaded for others is pushed out as late as can be. So where it depends on what is loaded, and the strategy goes by the
-- index alone and has no opinion on equals; else dkey. node: of that one alone.
local function coldest_like(dkey, need, strategy, cache, node)
  local indifferent = affine(need) and not need.s and (strategy.find == find_best or strategy.find == find_emptiest)
  local best, least = dkey, indifferent and last_use(dkey)
  if not least then return dkey end
  local ord = call("HGET", K.dev .. dkey, "ord")
  local score = call("ZSCORE", K.index .. "sched", ord .. "|" .. dkey)
  for _, member in ipairs(score and call("ZRANGEBYSCORE", K.index .. "sched", score, score, "LIMIT", 0, MOST_ALIKE) or {}) do
    local other = string.sub(member, 10)
    local used = (not node or node_of(other) == node) and (last_use(other) or 0)
    if used and used < least and has_room(cache, other, need) then
      best, least = other, used
      if used == 0 then return best end
    end
  end
  return best
end

-- Returns the device and its node as `load_node` read it, or nil.
local function place(need, name)
  local cache, strategy = {}, strategy_of(name)
  local dkey = affine(need) and find_warm(need, cache)
  if dkey then return dkey, cache[node_of(dkey)] end
  local indexed = strategy.find and not (need.s or need.limits or (need.k > 1 and call("HEXISTS", K.meta, "linked") == 1))
  if indexed then dkey = strategy.find(need, cache) else dkey = find_by_score(need, strategy, cache) end
  if dkey and indexed and need.k > 1 then
    local at = choose_in_view(node_view(cache[node_of(dkey)]), need, strategy, cache)
    dkey = at and need.on[1]
  end
  if dkey and abides(need) then return nil end
  if dkey then dkey = coldest_like(dkey, need, strategy, cache) end
  local n = dkey and cache[node_of(dkey)]
  if n then settle(need, n, dkey) end
  return dkey, n
end
