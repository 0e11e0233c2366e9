-- Library: grant what now fits. Touches: shapes, line, waiting and all that claim and breaker touch.
-- Rule: in order of priority, then arrival, every waiting allocation that fits is granted. Within a shape the first
-- that does not fit speaks for all behind it, so a pass looks at heads of shapes and never at every waiter.

-- The first of a shape's line, with its record. A name without one that waits here is damage: it is taken out, so that
-- those behind it are not held up, and no script stops halfway.
local function head_of(shape)
  while true do
    local id = call("ZRANGE", K.line .. shape, 0, 0)[1]
    if not id then
      call("ZREM", K.shapes, shape)
      return nil
    end
    local a = load_alloc(id)
    local stands = a and a.state == "waiting" and a.shape == shape
    if stands and admits(a, need_of(shape).kind) then return id, a end
    if stands then hold(id, a, "breaker") else dequeue(id, shape) end
  end
end

-- a: as `admits` let it pass.
local function grant_head(shape, need, dkey, id, a, n, out)
  dequeue(id, shape)
  spend(a)
  local token, cores, d = claim(id, dkey, need, n)
  record_grant(id, a, dkey, need, token, cores, d)
  if need.kind == "t" then
    local message = call("HGET", K.alloc .. id, "msg") or ""
    if not deliver(d, token, message) then out[#out + 1] = { id, token, d.queue, message } end
  end
end

-- What one node has free, for looking at many shapes cheaply.
local function node_view(n)
  local view = { c = n.c, r = n.r, gpus = {}, most = { t = -1, m = -1 } }
  local fleet = fleet_of(n)
  for i = 1, #fleet, 4 do
    local dkey, free, ix = string.sub(fleet[i], 10), fleet[i + 2], index_of(fleet[i + 1], fleet[i + 3])
    local slot = ix == "sched"
    if ix == "" then -- takes nothing
    elseif kind_of(dkey) == "cpu" then
      view.cpu, view.cpu_slot = dkey, slot
    else
      view.gpus[#view.gpus + 1] = { dkey = dkey, free = free, slot = slot }
      if slot and free > view.most.t then view.most.t = free end
      if free > view.most.m then view.most.m = free end
    end
  end
  return view
end

local function fits_view(view, need)
  if view.c < need.c or view.r < need.r then return false end
  if need.g > 0 then return view.most[need.kind] >= need.g end
  if need.kind == "t" then return view.cpu_slot end
  return view.cpu ~= nil
end

local function choose_in_view(view, need, strategy)
  if need.g == 0 then return view.cpu end
  local best
  for _, gpu in ipairs(view.gpus) do
    if gpu.free >= need.g and (gpu.slot or need.kind == "m") then
      if strategy == "first_fit" then return gpu.dkey end
      if not best or gpu.free < best.free then best = gpu end
    end
  end
  return best and best.dkey
end

-- Something was freed on one node (n, as `load_node` read it): only it can have become fit for a shape that waits.
local function pass_node(n, out)
  local heads = call("ZRANGE", K.shapes, 0, -1)
  if #heads == 0 then return end
  local view, failed, i = node_view(n), {}, 1
  while heads[i] do
    local shape = heads[i]
    local need, id, a = not failed[shape] and need_of(shape), nil, nil
    if need and fits_view(view, need) then id, a = head_of(shape) end
    if id then
      grant_head(shape, need, choose_in_view(view, need, a.strat), id, a, n, out)
      -- Room only shrank: what failed goes on failing, and the order of heads may have changed.
      view, heads, i = node_view(n), call("ZRANGE", K.shapes, 0, -1), 1
    else
      failed[shape] = true
      i = i + 1
    end
  end
end

-- Capacity may have changed anywhere: ask the whole index for each shape.
local function pass_all(out)
  local heads, failed, i = call("ZRANGE", K.shapes, 0, -1), {}, 1
  while heads[i] do
    local shape = heads[i]
    local dkey, n, id, a, need
    if not failed[shape] then
      need = need_of(shape)
      id, a = head_of(shape)
      if need and id then dkey, n = place(need, a.strat) end
    end
    if dkey then
      grant_head(shape, need, dkey, id, a, n, out)
      heads, i = call("ZRANGE", K.shapes, 0, -1), 1
    else
      failed[shape] = true
      i = i + 1
    end
  end
end

-- One shape gained a waiter that may fit somewhere (a delayed task came due): place it or leave it in line.
local function place_or_wait(id, a, out)
  local first = call("ZCARD", K.line .. a.shape) == 0
  enqueue(id, a.shape, a.score)
  if not first then return end
  local need = need_of(a.shape)
  local dkey, n = place(need, a.strat)
  if not dkey then return end
  if admits(a, need.kind) then grant_head(a.shape, need, dkey, id, a, n, out) else hold(id, a, "breaker") end
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
