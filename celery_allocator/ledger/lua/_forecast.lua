-- Library: when what waits will start. Touches: forecast; reads nearly all. Writes only in `refresh`.
-- The order of admission is run forward in memory: what runs ends when such tasks usually do (the median of those that have
-- run for as long already), what is freed goes to whoever is next (turns of tenants, places, who may pass the first), and
-- each runs for as long as is usual. That is bounded, and so it is an approximation:
--   at most MOST_HELD of what is held, MOST_NODES nodes and MOST_WAITING of what waits are looked at, the first of every
--   lane; after MOST_STEPS comparisons it stops. Who comes behind is put where the rate of its lane, or of all, leads.
--   Cores are numbers, and any strategy takes the device with least memory left. Breakers, caps and holds are not foreseen.
local MOST_HELD, MOST_NODES, MOST_WAITING, MOST_TENANTS, MOST_STEPS = 500, 200, 256, 32, 12000
local SEATS = 4 -- nodes looked at for the first in line, besides the one that has room for others
local FRESH = 1000 -- ms for which one forecast serves all that ask

-- Nodes and their devices that take something: { name → { c, r, list of devices, runs: what is held there } }, and a list.
local function sim_nodes()
  local nodes, list = {}, {}
  for _, name in ipairs(call("ZRANGE", K.nodes, 0, MOST_NODES - 1)) do
    local n = load_node(name)
    local v = n and { name = name, n = n, c = n.c, r = n.r, devs = {}, list = {}, runs = {} }
    local fleet = n and fleet_of(n) or {}
    for at = 1, #fleet, 4 do
      if fleet[at + 1] ~= "x" then
        local dkey = string.sub(fleet[at], 10)
        local d = { dkey = dkey, at = at, free = fleet[at + 2], s = fleet[at + 3], tasks = fleet[at + 1] == "w", cpu = kind_of(dkey) == "cpu" }
        v.devs[dkey] = d
        v.list[#v.list + 1] = d
      end
    end
    if v and #v.list > 0 then
      nodes[name] = v
      list[#list + 1] = v
    end
  end
  return nodes, list
end

-- Most memory free on one device of a node, for tasks and by hand; −1 where none is open.
local function sim_top(v)
  local top = { t = -1, m = -1, cpu_t = false, cpu_m = false }
  for _, d in ipairs(v.list) do
    local slot = d.tasks and d.s > 0
    if d.cpu then
      top.cpu_t, top.cpu_m = slot, true
    else
      if slot and d.free > top.t then top.t = d.free end
      if d.free > top.m then top.m = d.free end
    end
  end
  v.top = top
end

-- Whether it may fit on a node, at a glance.
local function sim_could(v, need)
  if v.c < need.c or v.r < need.r then return false end
  if not v.top then sim_top(v) end
  if not need.gpu then return v.top["cpu_" .. need.kind] end
  return v.top[need.kind] >= need.g
end

-- Whether a device has so much free, and may be taken.
local function sim_open(v, d, need, free)
  return d.cpu ~= need.gpu and free >= (need.s and amount(need, v.n, d.at) or need.g) and matches(d.dkey, need)
end

-- The devices of a node that would hold it, those with least memory left first; nil if it does not fit.
local function sim_fit(v, need)
  local count, best, found = need.k or 1, nil, nil
  for _, d in ipairs(v.list) do
    local open = need.kind == "m" or (d.tasks and d.s > 0)
    if open and sim_open(v, d, need, d.free) then
      if count > 1 then
        found = found or {}
        found[#found + 1] = d
      elseif not best or d.free < best.free then
        best = d
      end
    end
  end
  if count == 1 then return best and { best } end
  if not found or #found < count then return nil end
  table.sort(found, function(x, y) return x.free < y.free end)
  return { unpack(found, 1, count) }
end

-- Take (sign 1) or give back (−1).
local function sim_take(v, run, sign)
  v.c, v.r, v.seen, v.top = v.c - sign * run.need.c, v.r - sign * run.need.r, nil, nil
  for i, d in ipairs(run.devs) do
    d.free = d.free - sign * run.need.g
    if i == 1 and run.need.kind == "t" then d.s = d.s - sign end
  end
  if sign == 1 then
    v.runs[#v.runs + 1] = run
  else
    for i, other in ipairs(v.runs) do
      if other == run then table.remove(v.runs, i); break end
    end
  end
end

-- When `need` will fit on a node by what is promised, and what is left of cores and RAM then. nil: nobody knows.
local function sim_shadow(v, need, at)
  if v.seen and v.seen.need == need then return v.seen end
  table.sort(v.runs, function(x, y) return x.promised < y.promised end)
  local g, s, c, r, since = {}, {}, v.c, v.r, at
  local function enough()
    if c < need.c or r < need.r then return nil end
    local count = need.k or 1
    for _, d in ipairs(v.list) do
      local open = need.kind == "m" or (d.tasks and d.s + (s[d] or 0) > 0)
      if open and sim_open(v, d, need, d.free + (g[d] or 0)) then
        count = count - 1
        if count == 0 then return d end
      end
    end
  end
  local i, dev = 0, enough()
  while not dev or (v.runs[i + 1] and v.runs[i + 1].promised <= since) do
    i = i + 1
    local run = v.runs[i]
    if not run or run.promised == math.huge then return nil end
    since, c, r = math.max(at, run.promised), c + run.need.c, r + run.need.r
    for k, d in ipairs(run.devs) do
      g[d] = (g[d] or 0) + run.need.g
      if k == 1 and run.need.kind == "t" then s[d] = (s[d] or 0) + 1 end
    end
    dev = enough()
  end
  local takes = need.s and amount(need, v.n, dev.at) or need.g
  v.seen = { need = need, at = since, dev = dev, c = c - need.c, r = r - need.r, g = dev.free + (g[dev] or 0) - takes }
  return v.seen
end

-- Put a lane where it belongs among its tenant's: by points of priority, pace, place.
local function sim_sort(lanes, lane)
  for i, other in ipairs(lanes) do
    if other == lane then table.remove(lanes, i); break end
  end
  if not lane.head then return end
  local at = 1
  while lanes[at] do
    local o = lanes[at]
    local before = o.point < lane.point
    if o.point == lane.point then
      before = o.pace < lane.pace or (o.pace == lane.pace and o.score <= lane.score)
      if BACKFILL ~= "easy" then before = o.score <= lane.score end
    end
    if not before then break end
    at = at + 1
  end
  table.insert(lanes, at, lane)
end

local function sim_next(lane)
  lane.at = lane.at + 1
  lane.head = lane.tasks[lane.at]
  if lane.head then lane.score, lane.point = lane.head.score, floor(lane.head.score / POINT) end
end

-- What waits (so many in all): tenants in a list, each with its lanes, and by name. more: one that does not wait, to be looked at as
-- if it did.
local function sim_line(more, total)
  local tenants, by_name, names = {}, {}, {}
  for name in turns() do names[#names + 1] = name end
  if more and call("SISMEMBER", K.queued, more.tenant) == 0 then names[#names + 1] = more.tenant end
  local lanes = 0
  for i = 1, math.min(#names, MOST_TENANTS) do
    local found = call("ZRANGE", K.turn .. names[i], 0, 63)
    lanes = lanes + #found
    tenants[i] = { name = names[i], found = found, lanes = {}, used = use_of(nil) }
    by_name[names[i]] = tenants[i]
  end
  local each = total <= MOST_WAITING and MOST_WAITING or math.max(1, floor(MOST_WAITING / math.max(1, lanes)))
  for _, tenant in ipairs(tenants) do
    local known = {}
    for _, name in ipairs(tenant.found) do
      local shape, pace = lane_parts(name)
      local need = need_of(shape)
      local lane = { name = name, need = need, pace = tonumber(pace) or math.huge, tasks = {}, at = 0, starts = 0 }
      local ids = need and call("ZRANGE", K.line .. name, 0, each - 1, "WITHSCORES") or {}
      for j = 1, #ids, 2 do
        local v = call("HMGET", K.alloc .. ids[j], "name", "size", "xrt")
        lane.tasks[#lane.tasks + 1] = { id = ids[j], score = tonumber(ids[j + 1]), usual = v[1] and usual_ms(v[1], v[2], v[3]) or 0,
          promised = v[1] and run_ms(v[1], v[2], v[3]) or math.huge }
      end
      known[name] = lane
      sim_next(lane)
      sim_sort(tenant.lanes, lane)
    end
    if more and more.tenant == tenant.name then
      local name = lane_of(more)
      local lane = known[name] or { name = name, need = need_of(more.shape), pace = tonumber(more.pace) or math.huge, tasks = {}, at = 0,
        starts = 0 }
      local at = #lane.tasks + 1
      while at > 1 and lane.tasks[at - 1].score > more.score do at = at - 1 end
      table.insert(lane.tasks, at, { id = more.id, score = more.score, usual = usual_ms(more.name, more.size, more.xrt) or 0,
        promised = run_ms(more.name, more.size, more.xrt) or math.huge })
      lane.at = 0
      sim_next(lane)
      sim_sort(tenant.lanes, lane)
    end
  end
  return tenants, by_name
end

-- The forecast: starts (id → ms), order (id → how many start before it), lanes (name → { started, last start, step }), all
-- { started, last, step }; false where nothing can be told. more: as for `sim_line`.
local function foresee(more)
  local nodes, list = sim_nodes()
  local ends, steps, total, holding = {}, 0, call("ZCARD", K.waiting), {}

  local function push(run)
    local low, high = 1, #ends + 1
    while low < high do
      local middle = floor((low + high) / 2)
      if ends[middle].at > run.at then low = middle + 1 else high = middle end
    end
    table.insert(ends, low, run) -- the next one is the last: taking it out moves nothing
  end

  for _, id in ipairs(call("ZRANGE", K.held, 0, MOST_HELD - 1)) do
    local v = call("HMGET", K.alloc .. id, "shape", "dev", "name", "size", "xrt", "s_ms", "g_ms", "tenant", "devs")
    local need = v[1] and need_of(v[1])
    local node = need and v[2] and nodes[node_of(v[2]) or ""]
    if node then
      local since = tonumber(v[6] or v[7] or now)
      local ran = now - since
      local usual, promised = usual_ms(v[3], v[4], v[5], ran), run_ms(v[3], v[4], v[5], ran)
      -- Longer than any before: as a guess, a quarter of that again.
      if not usual and runs_of("*")[1] > 0 then usual = ran * 1.25 end
      if need.kind == "m" then usual = usual or tonumber(call("ZSCORE", K.manual, id) or now) - since end
      local devs = {}
      for _, dkey in ipairs(split(v[9] or v[2])) do devs[#devs + 1] = node.devs[dkey] end
      if usual and devs[1] then
        local run = { at = math.max(now + 1, since + usual), promised = promised and math.max(now, since + promised) or math.huge,
          need = need, node = node, devs = devs, tenant = v[8] or "" }
        node.runs[#node.runs + 1] = run
        push(run)
      end
      holding[#holding + 1] = { tenant = v[8] or "", need = need }
    end
  end
  if #list == 0 or (#ends == 0 and total > 0) then return false end

  local tenants, by_name = sim_line(more, total)
  for _, held in ipairs(holding) do
    local used, need = (by_name[held.tenant] or {}).used, held.need
    if used then used.g, used.c, used.r = used.g + need.g * (need.k or 1), used.c + need.c, used.r + need.r end
  end
  local quotas, totalled = {}, totals()
  local told = { at = now, starts = {}, order = {}, lanes = {}, started = 0, first = now, last = now, total = total }
  for _, tenant in ipairs(tenants) do quotas[tenant] = #tenants > 1 and quota_of(tenant.name) or {} end

  -- What is kept for whom: a lane's head, its node.
  local kept
  local real = BACKFILL == "easy" and reservation()
  local function keep(lane, v, at)
    if kept and kept.task == lane.head then return end
    kept = { task = lane.head, need = lane.need }
    if real and real.id == lane.head.id and real.dkey then
      kept.node = nodes[node_of(real.dkey)]
      return
    end
    local best
    for i = 0, math.min(#list, SEATS) do
      local node = list[i] or v
      local left = sim_shadow(node, lane.need, at)
      steps = steps + 2 * #node.runs + 5
      if left and (not best or left.at < best) then best, kept.node = left.at, node end
    end
  end
  local function may_pass(v, task, need, devs, at)
    if not kept or kept.node ~= v or kept.task == task then return true end
    local left = sim_shadow(v, kept.need, at)
    steps = steps + #v.runs + 5
    if not left or at + task.promised <= left.at then return true end
    if need.c > left.c or need.r > left.r then return false end
    for _, d in ipairs(devs) do
      if d == left.dev and (need.s and amount(need, v.n, d.at) or need.g) > left.g then return false end
    end
    return true
  end

  local function start(lane, v, devs, tenant, at)
    local task, need = lane.head, lane.need
    if need.s then need = { g = amount(need, v.n, devs[1].at), c = need.c, r = need.r, kind = need.kind, k = need.k, gpu = true } end
    local run = { at = at + task.usual, promised = at + task.promised, need = need, node = v, devs = devs, tenant = tenant.name }
    sim_take(v, run, 1)
    push(run)
    local u = tenant.used
    u.g, u.c, u.r = u.g + need.g * (need.k or 1), u.c + need.c, u.r + need.r
    told.started, told.last = told.started + 1, at
    if told.started == 1 then told.first = at end
    told.starts[task.id], told.order[task.id] = at, told.started
    local l = told.lanes[lane.name] or { 0, at, at }
    l[1], l[3] = l[1] + 1, at
    told.lanes[lane.name] = l
    if kept and kept.task == task then kept = nil end
    sim_next(lane)
    sim_sort(tenant.lanes, lane)
  end

  local function pass_once(v, at)
    if #tenants > 1 then
      for _, tenant in ipairs(tenants) do
        tenant.share, tenant.first = share_of(tenant.used, quotas[tenant], totalled), math.huge
        for _, lane in ipairs(tenant.lanes) do tenant.first = math.min(tenant.first, lane.score) end
      end
      table.sort(tenants, function(x, y)
        if x.share ~= y.share then return x.share < y.share end
        local a, b = x.before or x.share, y.before or y.share -- as in turns()
        if a ~= b then return a < b end
        if x.first ~= y.first then return x.first < y.first end
        return x.name < y.name
      end)
    end
    local first, blocked = true, nil
    for _, tenant in ipairs(tenants) do
      local head
      for _, lane in ipairs(tenant.lanes) do
        steps = steps + 1
        if not head or lane.score < head.score then head = lane end
      end
      if head and first then
        first = false
        local devs = sim_could(v, head.need) and sim_fit(v, head.need)
        if devs and may_pass(v, head.head, head.need, devs, at) then
          start(head, v, devs, tenant, at)
          return true
        end
        if BACKFILL == "none" then return false end
        blocked = head
      end
      for _, lane in ipairs(tenant.lanes) do
        steps = steps + 1
        local devs = lane ~= head and sim_could(v, lane.need) and sim_fit(v, lane.need)
        if devs then
          steps = steps + #v.list
          if BACKFILL == "easy" then keep(blocked, v, at) end
        end
        if devs and may_pass(v, lane.head, lane.need, devs, at) then
          start(lane, v, devs, tenant, at)
          return true
        end
      end
    end
    return false
  end

  while #ends > 0 and steps < MOST_STEPS do
    local run = table.remove(ends)
    local at, v = run.at, run.node
    sim_take(v, run, -1)
    local tenant = by_name[run.tenant]
    if tenant then
      local u = tenant.used
      tenant.before = #tenants > 1 and share_of(u, quotas[tenant], totalled) or nil
      u.g, u.c, u.r = u.g - run.need.g * (run.need.k or 1), u.c - run.need.c, u.r - run.need.r
    end
    local waits = false
    for _, other in ipairs(tenants) do waits = waits or #other.lanes > 0 end
    if not waits then break end
    while steps < MOST_STEPS and pass_once(v, at) do end
    if tenant then tenant.before = nil end
  end
  if told.started == 0 and total > 0 then return false end
  return told
end

-- When one starts, of which the forecast does not say: as its lane goes on, or else all. index: how many of its lane are
-- before it; rank: how many of all.
local function beyond(told, lane, index, rank)
  local step = told.started > 1 and (told.last - told.first) / (told.started - 1) or 0
  local l = told.lanes[lane]
  if l and index >= l[1] then
    local own = l[1] > 1 and (l[3] - l[2]) / (l[1] - 1) or step
    return l[3] + (index - l[1] + 1) * math.max(own, 0)
  end
  return told.last + math.max(0, rank + 1 - told.started) * step
end

local foreseen
-- The last forecast made, if it is fresh (false: it could tell nothing); else nil.
local function last_forecast()
  local ok, told = pcall(cmsgpack.unpack, call("GET", K.forecast) or "")
  if not (ok and type(told) == "table" and told.at and told.at <= now) then return nil end
  -- That nothing can be told changes with the first run that ends.
  if now - told.at >= (told.started and FRESH or FRESH / 10) then return nil end
  return told.started and told or false
end

local function forecast()
  if foreseen == nil then foreseen = last_forecast() end
  if foreseen == nil then foreseen = foresee() end
  return foreseen
end

-- Make a new one for all that ask in the next moment.
local function refresh()
  foreseen = foresee()
  call("SET", K.forecast, cmsgpack.pack(foreseen or { at = now }), "PX", 60000)
  return foreseen
end

-- When one that waits will start by the order of admission alone, ms; and its position. nil where nothing can be told.
local function expected(told, id, a)
  local rank = call("ZRANK", K.waiting, id) or 0
  -- It has room, and waits for a device where its word is loaded.
  local by = sounds_affine(a.shape) and call("ZRANK", K.line .. lane_of(a), id) == 0 and tonumber(call("ZSCORE", K.patience, lane_of(a)) or nil)
  if by and by > now then return by, rank + 1 end
  if not told then return nil, rank + 1 end
  local at, order = told.starts[id], told.order[id]
  if call("SCARD", K.queued) < 2 then order = rank + 1 end
  if at then return math.max(at, now), order or rank + 1 end
  local lane = lane_of(a)
  return math.max(now, beyond(told, lane, call("ZRANK", K.line .. lane, id) or 0, rank)), order or rank + 1
end

-- Say of one that has begun to wait when it will start, and remember that, for when it does. Returns p50 and p90 (ms since
-- the epoch; nil where nothing can be told) and its position.
local function promise(id, a)
  local told = last_forecast()
  -- One for a much shorter line says nothing of this one. It may grow by half before another is made: so a flood makes a few.
  if told == nil or (told and told.total * 1.5 < call("ZCARD", K.waiting)) then
    told = refresh()
  end
  local at, position = expected(told, id, a)
  if not at then return nil, nil, position end
  local p50, p90 = corrected(at - now)
  p50, p90 = string.format("%.0f", now + p50), string.format("%.0f", now + p90) -- events tell whole milliseconds
  call("HSET", K.alloc .. id, "p50", p50, "p90", p90,
    "fw", string.format("%.0f", at - now), "fc", NOW, "nv", string.format("%.0f", thumb(a.name, position) or -1))
  return p50, p90, position
end
