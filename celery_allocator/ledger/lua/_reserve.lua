-- Library: what is kept for the first in line. Touches: reserved, node, dev, on, alloc, manual (reads) and all that hold touches.
-- Others may pass the first in line that does not fit, but may not delay it (EASY backfilling: Lifka 1995; Feitelson and
-- Weil 1998). It is given a device, and the time at which enough of it and of its node will be free by the run times of
-- what runs there. On that node others are granted only what ends before then, or what will still be left beside it; when it
-- is too late already (see `late`), only the latter.
-- Where run times are not known, it may be passed by MAX_BYPASS times or for MAX_BYPASS_MS; then one device is emptied for
-- it: nothing is granted there but what leaves room for it already. On all other nodes nothing is held back.
-- There is one reservation at a time. Its holder keeps it until it is granted, or does not wait any more, or one of the
-- same tenant comes before it (see unseat). So each that becomes first starts, and the next one becomes first.
-- often: passed kept_from
local MOST_SEATS, MOST_DEVICES = 32, 1024 -- devices that could hold it, and devices, looked at: those with most free memory first
local MOST_HEADS = 16 -- heads of lanes looked at for one that a device could hold now
local debut -- id of one that goes before the holder because its tenant holds nothing
local kept_back = false -- whether anything was kept from anyone since this was set to false

-- The first of a lane, with its record. A name without one that waits here is damage: it is taken out, so that those behind
-- it are not held up, and no script stops halfway.
local function head_of(lane)
  local shape, pace, tenant = lane_parts(lane)
  while true do
    local id = call("ZRANGE", K.line .. lane, 0, 0)[1]
    if not id then
      close_lane(lane, shape, tenant)
      return nil
    end
    local a = load_alloc(id)
    local stands = a and a.state == "waiting" and lane_of(a) == lane
    if stands and admits(a, need_of(shape).kind) then return id, a end
    if stands then hold(id, a, "breaker") else dequeue(id, { shape = shape, pace = pace, tenant = tenant }) end
  end
end

-- What holds something of a node, by its expected end (ms; inf where nobody knows). What runs for longer than was said
-- counts as ending now.
local holders_read = {}
local function holders_of(node, n)
  if holders_read[node] then return holders_read[node] end
  local out, fleet = {}, fleet_of(n)
  for at = 1, #fleet, 4 do
    local dkey = string.sub(fleet[at], 10)
    for _, id in ipairs(call("SMEMBERS", K.on .. dkey)) do
      local v = call("HMGET", K.alloc .. id, "shape", "name", "size", "xrt", "s_ms", "g_ms", "dev")
      local need = v[1] and need_of(v[1])
      if need then
        local since = tonumber(v[5] or v[6] or nil) or now
        local run = run_ms(v[2] or "", v[3], v[4], now - since)
        local ends = run and since + run or math.huge
        if need.kind == "m" then ends = math.min(ends, tonumber(call("ZSCORE", K.manual, id) or math.huge)) end
        -- Of one on several devices, cores, RAM and slot are taken once.
        local once = v[7] == dkey and 1 or 0
        out[#out + 1] = { dkey = dkey, g = need.g, c = once * need.c, r = once * need.r, s = need.kind == "t" and once or 0,
          ends = math.max(now, ends) }
      end
    end
  end
  table.sort(out, function(x, y) return x.ends < y.ends end)
  holders_read[node] = out
  return out
end

-- `shadow` of a claim on several GPUs of a node. gpus: what each will have free then; where nobody knows when, as many as it
-- wants, those that have most free now: these are emptied. What they have free can only grow by that.
local function shadow_of_several(need, n)
  local fleet, gpus, slots, c, r, by_free, wants = fleet_of(n), {}, {}, n.c, n.r, {}, {}
  for at = 1, #fleet, 4 do
    local dkey = string.sub(fleet[at], 10)
    if kind_of(dkey) == "gpu" and fleet[at + 1] ~= "x" and matches(dkey, need) then
      gpus[dkey], wants[dkey] = fleet[at + 2], amount(need, n, at)
      by_free[#by_free + 1] = { dkey = dkey, free = fleet[at + 2] }
      slots[dkey] = need.kind == "m" and 1 or fleet[at + 1] == "w" and fleet[at + 3] or -math.huge
    end
  end
  local since, i, holders = now, 0, holders_of(n.name, n)
  local function enough()
    local count = 0
    for dkey, free in pairs(gpus) do if free >= wants[dkey] and slots[dkey] >= 1 then count = count + 1 end end
    return count >= need.k and c >= need.c and r >= need.r
  end
  while not enough() or (holders[i + 1] and holders[i + 1].ends <= since) do
    i = i + 1
    local h = holders[i]
    if not h then return nil end
    since, c, r = h.ends, c + h.c, r + h.r
    if gpus[h.dkey] then gpus[h.dkey], slots[h.dkey] = gpus[h.dkey] + h.g, slots[h.dkey] + (need.kind == "t" and h.s or 0) end
  end
  if #by_free < need.k then return nil end
  table.sort(by_free, function(x, y) return x.free > y.free or (x.free == y.free and x.dkey < y.dkey) end)
  local left = { c = c - need.c, r = r - need.r, gpus = gpus, wants = wants, at = since, free = 0 }
  if since == math.huge then left.c, left.r, left.gpus = math.max(0, n.c - need.c), math.max(0, n.r - need.r), {} end
  for i = 1, need.k do
    left.free = left.free + by_free[i].free
    if since == math.huge then left.gpus[by_free[i].dkey] = by_free[i].free end
  end
  return left
end

-- When enough for `need` will be free on a device (now, a time in ms, inf: nobody knows), and what will be left beside it
-- then; nil if it could not hold that even when empty. n: its node as `load_node` read it.
local function shadow(need, dkey, n)
  local fleet = fleet_of(n)
  local at = find_in(fleet, dkey)
  if need.k > 1 then return shadow_of_several(need, n) end
  local slot = need.kind == "t" and 1 or 0
  local g, s, c, r, want = fleet[at + 2], fleet[at + 3], n.c, n.r, amount(need, n, at)
  local since, i, holders = now, 0, holders_of(node_of(dkey), n)
  local function enough() return g >= want and s >= slot and c >= need.c and r >= need.r end
  local left = { g = math.max(0, g - want), s = math.max(0, s - slot), c = math.max(0, c - need.c), r = math.max(0, r - need.r) }
  while not enough() or (holders[i + 1] and holders[i + 1].ends <= since) do
    i = i + 1
    local h = holders[i]
    if not h then return nil end
    since, c, r = h.ends, c + h.c, r + h.r
    if h.dkey == dkey then g, s = g + h.g, s + h.s end
  end
  if since < math.huge then left = { g = g - want, s = s - slot, c = c - need.c, r = r - need.r } end
  left.at, left.free = since, fleet[at + 2]
  return left
end

-- Whether a capacity class (memory:cores:RAM) could hold `need` when empty.
local function class_holds(class, need)
  local g, c, r = string.match(class or "", "^(%d+):(%d+):(%d+)$")
  return g and tonumber(g) >= need.g and tonumber(c) >= need.c and tonumber(r) >= need.r and (not need.s or tonumber(g) > 0)
end

-- When `need` will fit on a device and what is left then (see shadow); nil if that takes no such claim.
local function outlook(need, dkey)
  local n = load_node(node_of(dkey))
  if not n or not may_go(dkey, n, need) then return nil end
  local fleet = fleet_of(n)
  local at = find_in(fleet, dkey)
  local mode = at and fleet[at + 1]
  if mode == "w" or (mode == "h" and need.kind == "m") then return shadow(need, dkey, n) end
end

-- The device on which `need` will fit first, as far as that is known; else the one with most memory free. And what `shadow`
-- says of it. nil if no device takes such a claim.
local function seat_for(need)
  local best, best_left
  local low, high = -CPU / 2, "+inf"
  if not need.gpu then low, high = "-inf", -CPU / 2 end
  for _, ix in ipairs(need.kind == "t" and { "sched", "idle" } or { "idle", "sched" }) do
    local offset, seats, found = 0, 0, nil
    repeat
      found = call("ZREVRANGEBYSCORE", K.index .. ix, high, low, "LIMIT", offset, MOST_SEATS)
      for _, member in ipairs(found) do
        local dkey = string.sub(member, 10)
        -- Those that are too small when empty do not count: a large one that is full stands behind all of them.
        local left = class_holds(call("HGET", K.dev .. dkey, "class"), need) and outlook(need, dkey)
        if left then
          seats = seats + 1
          if not best or left.at < best_left.at or (left.at == best_left.at and left.free > best_left.free) then
            best, best_left = dkey, left
          end
        end
      end
      offset = offset + MOST_SEATS
    until #found < MOST_SEATS or seats >= MOST_SEATS or offset >= MOST_DEVICES
  end
  return best, best_left
end

-- The time that was said first stays.
local function say_due(r, at)
  if r.due or not at then return end
  r.due = at
  call("HSET", K.reserved, "due", string.format("%.0f", at))
end

local function take_seat(r, dkey, at)
  if r.dkey ~= dkey then free_seat(r.dkey) end
  r.dkey, r.at = dkey, at
  say_due(r, at)
  call("HSET", K.reserved, "dev", dkey, "at", at and string.format("%.0f", at) or "")
  event("reserved", r.id, r.tid or call("HGET", K.alloc .. r.id, "tid") or "", "device", dkey,
    "until", at and string.format("%.0f", at) or "")
end

-- The first of a lane, with its record; nil where it is damaged, or its breaker does not let it pass. Whom a breaker sets
-- aside is for those to say who would grant it something.
local function standing(lane)
  local id = call("ZRANGE", K.line .. lane, 0, 0)[1]
  local a = id and load_alloc(id)
  if a and a.state == "waiting" and lane_of(a) == lane and admits(a, need_of(a.shape).kind) then return id, a end
end

-- Whether the first of a lane has room, and waits for a device where its word is loaded: it needs nothing kept for it.
local function waits_on(lane, id, a)
  local need = need_of(a.shape)
  if not affine(need) then return false end
  need.id, need.lane, need.tenant, need.score, need.run = id, lane, a.tenant, tonumber(a.score), run_ms(a.name, a.size, a.xrt)
  return not place(need, a.strat) and need.abides ~= nil
end

-- Make the first in line that some device could hold the holder of the reservation.
local function reserve()
  local looked, classes, nowhere = 0, call("HKEYS", K.classes), {}
  local function hopeless(need)
    for _, other in ipairs(nowhere) do
      if other.kind == need.kind and need.g >= other.g and need.c >= other.c and need.r >= other.r and need.gpu == other.gpu
        and need.more == other.more then
        return true
      end
    end
    for _, class in ipairs(classes) do if class_holds(class, need) then return false end end
    return true
  end
  for tenant in turns() do
    for _, lane in ipairs(call("ZRANGE", K.turn .. tenant, 0, -1)) do
      local need = need_of(lane_parts(lane))
      if need and not hopeless(need) and not capped(tenant, need) then
        local id, a = standing(lane)
        local dkey, left
        if id and waits_on(lane, id, a) then id = nil end
        if id then dkey, left = seat_for(need) end
        if dkey then
          local v = call("HMGET", K.alloc .. id, "since", "by", "due")
          seat = { id = id, tid = a.tid, since = tonumber(v[1] or nil) or now, by = tonumber(v[2] or nil) or 0, tenant = tenant,
            score = tonumber(a.score), shape = a.shape, due = tonumber(v[3] or nil) }
          call("HSET", K.reserved, "id", id, "dev", "", "at", "", "since", string.format("%.0f", seat.since), "by", seat.by,
            "tenant", tenant, "score", a.score, "shape", a.shape, "due", v[3] or "")
          if left.at < math.huge then take_seat(seat, dkey, left.at) end
          return
        end
        if id then
          nowhere[#nowhere + 1] = need
          looked = looked + 1
          if looked == MOST_HEADS then return end
        end
      end
    end
  end
end

-- Whether it has been passed as often, or for as long, as may be.
local function overdue(r) return r.by >= MAX_BYPASS or now - r.since >= MAX_BYPASS_MS end

-- Whether it is too far behind the time that was said first: by MAX_BYPASS_MS, or by as long as it was to wait, if that is
-- longer. Run times that were learned are quantiles. Of many that are let in since they should end in time a few do not, each
-- of these puts the time off, and more are let in until then: so it would wait for good.
local function late(r) return r.due ~= nil and now - r.due >= math.max(MAX_BYPASS_MS, r.due - r.since) end

-- Called before anybody passes the first in line: it has a reservation then, and a device if that is due.
local function guard()
  if BACKFILL ~= "easy" then return end
  if not reservation() then reserve() end
  local r = reservation()
  if r and not r.dkey and overdue(r) then
    local dkey, left = seat_for(need_of(r.shape))
    if dkey then take_seat(r, dkey, left.at < math.huge and left.at or nil) end
  end
end

-- Somebody has passed the first in line.
local function passed(id)
  local r = reservation()
  if r and r.id ~= id and (not r.dkey or debut == id) then r.by = call("HINCRBY", K.reserved, "by", 1) end
end

-- Whether the tenant of one that wants it holds nothing, and the holder's does: then it goes first, so that who floods a pool
-- delays another tenant's first task by one of its own at most. That counts as passing, and is bounded like that.
local function debuts(need, r)
  if need.tenant == r.tenant or eased[need.tenant] or overdue(r) then return false end
  local used = call("HMGET", K.used, need.tenant, r.tenant)
  return not used[1] and (used[2] or eased[r.tenant]) and true or false
end

-- Something was granted: what was read of its node has changed.
local function changed_on(dkey) holders_read[node_of(dkey)] = nil end

-- Whether enough GPUs for `head` are left of a node where `need` takes so much of dkey (and of others, if it wants several).
-- left: as `shadow_of_several` says.
local function leaves_several(left, head, dkey, need, takes)
  if left.at == math.huge then return not left.gpus[dkey] or left.gpus[dkey] - takes >= left.wants[dkey] end
  local count = 0
  for other, free in pairs(left.gpus) do
    if free - (other == dkey and takes or 0) >= left.wants[other] then count = count + 1 end
  end
  return count - (need.k or 1) + 1 >= head.k
end

-- Whether a claim must leave a device alone, for what is kept there. need: with run (ms, nil: nobody knows), id, tenant and
-- place in line of who wants it. n: the device's node as it is.
local function kept_from(dkey, n, need)
  local r = BACKFILL == "easy" and reservation()
  if not r or not r.dkey or r.id == need.id then return false end
  -- Who is before the holder in its own tenant's line passes nobody.
  if need.tenant == r.tenant and need.score and need.score < r.score then return false end
  local node = node_of(r.dkey)
  if node_of(dkey) ~= node then return false end
  local head = need_of(r.shape)
  -- On another device, while it leaves cores and RAM enough for the holder as it is.
  if head.k == 1 and dkey ~= r.dkey and n.c - need.c >= head.c and n.r - need.r >= head.r then return false end
  if not find_in(fleet_of(n), r.dkey) then return false end
  local left = shadow(head, r.dkey, n)
  if not left then return false end
  if need.run and now + need.run <= left.at and left.at < math.huge and not late(r) then return false end
  local beside
  local takes = need.s and amount(need, n, find_in(fleet_of(n), dkey)) or need.g
  if head.k > 1 then
    beside = leaves_several(left, head, dkey, need, takes)
  else
    beside = dkey ~= r.dkey or (takes <= left.g and (need.kind == "m" or left.s >= 1))
  end
  if need.c <= left.c and need.r <= left.r and beside then return false end
  if debuts(need, r) then
    debut = need.id
    return false
  end
  kept_back = true
  return true
end

-- Look once more where the holder of the reservation will fit first: its device may have been closed, or what runs there
-- runs for longer than it should.
local function review()
  local r = BACKFILL == "easy" and reservation()
  if not r then return end
  local a = load_alloc(r.id)
  if not a or a.state ~= "waiting" then return vacate(r.id) end
  local need = need_of(r.shape)
  -- Its tenant has reached its cap: nothing is kept for what may not start.
  if capped(r.tenant, need) then return vacate(r.id, true) end
  local here = r.dkey and outlook(need, r.dkey)
  if here and r.at and r.at > now then return end
  local dkey, left = seat_for(need)
  -- No device could hold it now: it is somebody else's turn to be kept something.
  if not dkey then return vacate(r.id, true) end
  if here and not (left.at < here.at) then dkey, left = r.dkey, here end
  local known = left.at < math.huge
  if not known and not overdue(r) then
    free_seat(r.dkey)
    call("HSET", K.reserved, "dev", "", "at", "")
    r.dkey, r.at = false, nil
  elseif dkey == r.dkey then
    r.at = known and left.at or nil
    say_due(r, r.at)
    call("HSET", K.reserved, "at", known and string.format("%.0f", r.at) or "")
  else
    take_seat(r, dkey, known and left.at or nil)
  end
end
