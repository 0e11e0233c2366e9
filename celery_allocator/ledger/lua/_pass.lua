-- Library: grant what now fits. Touches: shapes, line, waiting and all that claim, breaker and reserve touch.
-- Whose turn it is: the tenant with the smallest dominant share; within a tenant priority, aged, then arrival. Who is
-- first is granted first. From the first that does not fit on, those that do fit pass it, as BACKFILL says:
--   easy    where they do not delay it (see _reserve); of one point of priority the shorter ones first
--   greedy  all of them, in their order
--   none    nobody
-- Within a shape the first that does not fit speaks for all behind it: a pass looks at heads of lanes, never at every waiter.
-- often: pass_one below_cap pass_unkept pass_node find_room

-- a: as `admits` let it pass.
local function grant_head(need, dkey, id, a, n, out)
  dequeue(id, a)
  spend(a)
  local token, cores, d = claim(id, dkey, need, n)
  record_grant(id, a, dkey, need, token, cores, d)
  changed_on(dkey)
  if need.kind == "t" then
    local message = call("HGET", K.alloc .. id, "msg") or ""
    if not deliver(d, token, message) then out[#out + 1] = { id, token, d.queue, message } end
  end
end

-- Whether a device of the node could have room: for looking at many shapes cheaply.
local function fits_view(view, need)
  if view.c < need.c or view.r < need.r then return false end
  if need.gpu then return view.most[need.kind] >= need.g and need.k <= #view.free end
  return view.cpu ~= nil and (view.cpu_slot or need.kind == "m")
end

-- Lanes of a tenant as their turns come, when its first one does not fit: list of { lane, shape, point of priority, pace, score }.
local function backfilling(tenant)
  local found, lanes = call("ZRANGE", K.turn .. tenant, 0, -1, "WITHSCORES"), {}
  for i = 1, #found, 2 do
    local shape, pace = lane_parts(found[i])
    local score = tonumber(found[i + 1])
    lanes[#lanes + 1] = { lane = found[i], shape = shape, point = floor(score / POINT), pace = tonumber(pace) or math.huge,
      score = score }
  end
  if BACKFILL == "easy" then
    table.sort(lanes, function(x, y)
      if x.point ~= y.point then return x.point < y.point end
      if x.pace ~= y.pace then return x.pace < y.pace end
      return x.score < y.score
    end)
  end
  return lanes
end

-- Its lane begins to wait for a device where its word is loaded, or goes on with that (see abides). There is room for it
-- elsewhere: it needs nothing kept for it.
local function have_patience(need)
  if need.first then call("ZADD", K.patience, string.format("%.0f", need.abides), need.lane) end
  if need.abides then vacate(need.id, true) end
end

-- Grant one that fits, if any does. could(shape, lane): its need where there is room for it, else nil. find(need, strategy):
-- device and node. only: a tenant, where no other's can have become fit. abiding: lanes whose first waits, in this pass, for a
-- device where its word is loaded: they are in nobody's way, added to. Returns whether something was granted.
local function grant_next(could, find, out, only, abiding)
  local first = not only
  local function try(lane, shape, tenant, is_first)
    local need = not abiding[lane] and could(shape, lane) or nil
    if not need or capped(tenant, need) then return false end
    need.lane, need.abides = lane, nil
    local id, a = head_of(lane)
    if not id then return false end
    need.id, need.run, need.tenant, need.score = id, run_ms(a.name, a.size, a.xrt), tenant, tonumber(a.score)
    if not is_first then guard() end
    local dkey, n = find(need, a.strat)
    if need.abides then
      have_patience(need)
      abiding[lane] = true
    end
    if not dkey then return false end
    grant_head(need, dkey, id, a, n, out)
    if not is_first or debut == id then passed(id) end
    return true
  end
  for tenant in turns(only) do
    local at, lane = 0, nil
    while first do
      lane = call("ZRANGE", K.turn .. tenant, at, at)[1]
      if lane and try(lane, lane_parts(lane), tenant, true) then return true end
      if not (lane and abiding[lane]) then break end
      at = at + 1
    end
    if lane then
      local shape = lane_parts(lane)
      -- Who is held up by its own tenant's cap waits for that, and not for room: another tenant's is the first then.
      local need = need_of(shape)
      first = need ~= nil and capped(tenant, need) ~= nil
    end
    if BACKFILL ~= "none" then
      for _, l in ipairs(backfilling(tenant)) do
        if l.lane ~= lane and try(l.lane, l.shape, tenant, false) then return true end
      end
    elseif not first then
      return false
    end
  end
  return false
end

local function pass_one(n, out)
  local view, shapes, parsed, fits, cache, abiding = nil, call("ZRANGE", K.shapes, 0, -1), {}, {}, { [n.name] = n }, {}
  local function could(shape) return fits[shape] and need_of(shape) or nil end
  local function find(need, strategy)
    local warm = affine(need) and find_warm(need, cache, n.name)
    if warm then return warm, n end
    strategy = strategy_of(strategy)
    local at = choose_in_view(view, need, strategy, cache)
    if not at or abides(need) then return nil end
    local dkey = coldest_like(string.sub(fleet_of(n)[at], 10), need, strategy, cache, n.name)
    settle(need, n, dkey)
    return dkey, n
  end
  while #shapes > 0 do
    local some = false
    view, fits = node_view(n), {}
    for _, shape in ipairs(shapes) do
      if parsed[shape] == nil then parsed[shape] = need_of(shape) or false end
      fits[shape] = parsed[shape] and fits_view(view, parsed[shape])
      some = some or fits[shape]
    end
    if not some or not grant_next(could, find, out, nil, abiding) then return end
    shapes = call("ZRANGE", K.shapes, 0, -1)
  end
end

-- Ask the whole index for each shape. only: as in `grant_next`; lanes: those that can have become fit, nil: all.
local function pass_everywhere(out, only, lanes)
  -- Shapes that fit nowhere, and lanes that may go nowhere: room only shrinks (where something is kept no more, pass_unkept
  -- looks).
  local full, abiding = {}, {}
  local function could(shape, lane)
    local need = not (full[shape] or full[lane] or (lanes and not lanes[lane])) and need_of(shape) or nil
    if need then need.shape, need.lane = shape, lane end
    return need
  end
  local function find(need, strategy)
    kept_back = false
    local dkey, n = place(need, strategy)
    if not dkey then full[(kept_back or need.abides) and need.lane or need.shape] = true end
    return dkey, n
  end
  while call("EXISTS", K.shapes) == 1 and grant_next(could, find, out, only, abiding) do end
end

-- Once per tick: lanes that have waited for long enough for a device where their word is loaded. Each is noted as looked at:
-- below zero. Who finds no room now has the reservation again before who comes after it.
local function pass_patient(some, out)
  local found, lanes = call("ZRANGEBYSCORE", K.patience, 0, NOW, "WITHSCORES", "LIMIT", 0, some), {}
  for i = 1, #found, 2 do
    lanes[found[i]] = true
    call("ZADD", K.patience, "-" .. found[i + 1], found[i])
  end
  if found[1] then pass_everywhere(out, nil, lanes) end
  for lane in pairs(lanes) do
    local _, _, tenant = lane_parts(lane)
    local first = call("ZRANGE", K.line .. lane, 0, 0, "WITHSCORES")
    if first[1] then unseat(tenant, first[2]) end
  end
end

-- Whether a tenant that has given something back was held up by its cap alone, and is not any more.
local function below_cap(tenant, before)
  if not has_caps(tenant) then return false end
  for _, lane in ipairs(call("ZRANGE", K.turn .. tenant, 0, -1)) do
    local need = need_of(lane_parts(lane))
    if need and capped(tenant, need, before) and not capped(tenant, need) then return true end
  end
  return false
end

-- The nodes where something was kept back until now.
local function pass_unkept(out)
  while unkept do
    unkept = false
    local nodes = call("HGET", K.reserved, "freed") or ""
    call("HDEL", K.reserved, "freed")
    for node in string.gmatch(nodes, "[^/]+") do
      local n = load_node(node)
      if n then pass_one(n, out) end
    end
  end
end

-- Something was freed on one node (n, as `load_node` read it): only it can have become fit for a shape that waits; and the
-- nodes where something was kept back until now. But what has waited for its tenant's cap may fit anywhere; and where nobody
-- may pass, so may who was behind the first.
local function pass_node(n, out)
  if BACKFILL == "none" then return pass_everywhere(out) end
  if n then pass_one(n, out) end
  for tenant, before in pairs(eased) do
    if below_cap(tenant, before) then pass_everywhere(out, tenant) end
  end
  pass_unkept(out)
end

-- Once per tick: what may pass changes with time, and with what is learned; and who was first may have gone.
local function pass_kept(out)
  if BACKFILL == "none" then return pass_everywhere(out) end
  review()
  if call("HEXISTS", K.reserved, "freed") == 1 then unkept = true end
  local r = reservation()
  pass_node(r and r.dkey and load_node(node_of(r.dkey)) or nil, out)
end

-- Capacity may have changed anywhere.
local function pass_all(out)
  pass_everywhere(out)
  pass_unkept(out)
end

-- Whether one of this tenant that has just come has others before it. Who waits for its own tenant's cap is in nobody else's way.
local function somebody_before(tenant)
  for _, other in ipairs(call("SMEMBERS", K.queued)) do
    local need = need_of(lane_parts(call("ZRANGE", K.turn .. other, 0, 0)[1] or ""))
    if other == tenant or not (need and capped(other, need)) then return true end
  end
  return false
end

-- A device for one that has just come (id, a; not in line yet), or nil: it has to wait. need: as need_of made it.
local function find_room(id, a, need)
  need.id, need.tenant, need.score, need.lane = id, a.tenant, tonumber(a.score), lane_of(a)
  if capped(a.tenant, need) then return nil end
  if call("EXISTS", K.shapes) == 1 then
    if BACKFILL == "none" and somebody_before(a.tenant) then return nil end
    -- Who is behind others of its own lane does not fit either, or may not pass.
    local head = call("ZRANGE", K.line .. need.lane, 0, 0, "WITHSCORES")
    if head[1] and tonumber(head[2]) < need.score then return nil end
    need.run = run_ms(a.name, a.size, a.xrt)
    guard()
  end
  return place(need, a.strat)
end

-- One shape gained a waiter that may fit somewhere (a delayed task came due): place it or leave it in line.
local function place_or_wait(id, a, out)
  local need = need_of(a.shape)
  local dkey, n = find_room(id, a, need)
  enqueue(id, a)
  have_patience(need)
  if not dkey then
    promise(id, a)
    return
  end
  if not admits(a, need.kind) then return hold(id, a, "breaker") end
  grant_head(need, dkey, id, a, n, out)
  passed(id)
end

-- What was on hold goes on: it is delayed again, or in line under its old place, or granted. Returns its state then.
local function unhold(id, a, out)
  take_out(id, a)
  call("HDEL", K.alloc .. id, "hold")
  local early = a.eta and tonumber(a.eta) > now
  event("unheld", id, a.tid, "name", a.name, "to", early and "delayed" or "waiting")
  if early then
    call("HSET", K.alloc .. id, "state", "delayed")
    call("ZADD", K.delayed, a.eta, id)
    call("ZREM", K.manual, id)
    return "delayed"
  end
  call("HSET", K.alloc .. id, "state", "waiting")
  a.state = "waiting"
  place_or_wait(id, a, out)
  return call("HGET", K.alloc .. id, "state")
end

-- Let up to `some` of what a name's breaker has set aside go on. Returns how many are left.
local function let_go(name, some, out)
  for _, id in ipairs(some > 0 and call("ZRANGE", K.aside .. name, 0, some - 1) or {}) do
    local a = load_alloc(id)
    call("ZREM", K.aside .. name, id)
    if a and a.state == "on_hold" then unhold(id, a, out) end
  end
  return call("ZCARD", K.aside .. name)
end

-- The caller cannot publish: its grants are due at once for the next tick.
local function leave_to_tick(grants)
  for _, grant in ipairs(grants) do call("ZADD", K.granted, now, grant[1]) end
end
