-- Library: the waiting line. Touches: waiting, line, turn, shapes, queued, reserved, patient, patience.
-- A shape is "g:c:r:kind", or "g:c:r:kind:k" for k GPUs of one node, each with g; "g:c:r:kind:k:more" asks for more than
-- amounts (see model/shape.py): s=thousandths of a GPU's memory, m=model, n=node, x=anti-affinity, w=affinity, l.name=label.
-- Those of one tenant that have one shape and are expected to run about as long (see _runtimes) stand in one lane:
-- "shape/pace/tenant". Within a lane nobody is passed by.
-- Place in a lane: arrival − priority · POINT, smaller first. Arrival counts sixteenths of a millisecond since 2026, each one
-- larger than the one before. So a point of priority is worth POINT of these: with ageing, the time in which one point is
-- earned by waiting; without, 2^43, which is 17 years. That key never changes, as all that wait age alike; and it is exact
-- in a double for |priority| ≤ 1000. Arrivals and POINT are even: odd places are those of what was moved to the front.
-- often: arrival line_score shape_of need_of reservation affine sounds_affine
local SINCE = 1767225600000

local function arrival(ms, last)
  local at = (ms - SINCE) * 16
  return last and at <= last and last + 2 or at
end

local function line_score(priority, arr) return arr - priority * POINT end

local function lane_of(a) return a.shape .. "/" .. (a.pace or "") .. "/" .. (a.tenant or "") end

-- Shape, pace, tenant; "" for what is no lane.
local function lane_parts(lane)
  local shape, pace, tenant = string.match(lane, "^([^/]*)/([^/]*)/(.*)$")
  return shape or "", pace or "", tenant or ""
end

-- The inverse of `need_of`. Amounts as the caller has them, text or numbers; k: how many GPUs; more: "" or nil: nothing.
local function shape_of(g, c, r, kind, k, more)
  local text = g .. ":" .. c .. ":" .. r .. ":" .. kind
  if (more or "") ~= "" then return text .. ":" .. k .. ":" .. more end
  return text .. (tonumber(k) > 1 and ":" .. k or "")
end

local function unquoted(text)
  return (string.gsub(text, "%%(%x%x)", function(code) return string.char(tonumber(code, 16)) end))
end

-- What is asked for besides amounts. s: thousandths of a GPU's memory; warm: what should be loaded there; limits: where it may
-- go at all (model, in small letters; node; apart, a word of which one may be on a node; labels of the node), nil: anywhere.
local function wants_of(more)
  local s, warm, limits = nil, nil, {}
  for key, value in string.gmatch(more, "([^=;]+)=([^;]*)") do
    if key == "s" then s = tonumber(value)
    elseif key == "w" then warm = unquoted(value)
    elseif key == "m" then limits.model = string.lower(unquoted(value))
    elseif key == "n" then limits.node = unquoted(value)
    elseif key == "x" then limits.apart = unquoted(value)
    elseif string.sub(key, 1, 2) == "l." then
      limits.labels = limits.labels or {}
      limits.labels[unquoted(string.sub(key, 3))] = unquoted(value)
    end
  end
  return s, warm, next(limits) and limits or nil
end

-- What a shape asks for: g (GPU MB of each GPU; where a share was asked for and nothing is granted yet, at least), c, r, kind, k;
-- gpu: whether it wants a GPU at all. Of one that asks for more than amounts also that: more, s, warm, limits, and least (g, as
-- the shape says: a placement sets g to what the share comes to). nil for what is no shape.
local function need_of(shape)
  local g, c, r, kind, several, more = string.match(shape, "^(%d+):(%d+):(%d+):(%a)(:?%d*):?(.*)$")
  local k = several == "" and 1 or tonumber(string.match(several or "", "^:(%d+)$"))
  if not k or (more == "" and k < 2 and several ~= "") or (more ~= "" and several == "") then return nil end
  local need = { g = tonumber(g), c = tonumber(c), r = tonumber(r), kind = kind, k = k }
  need.gpu = need.g > 0
  if more ~= "" then
    need.more, need.least = more, need.g
    need.s, need.warm, need.limits = wants_of(more)
    need.gpu = need.gpu or need.s ~= nil
  end
  return need
end

-- Whether where it goes depends on what is loaded there (see _limits): a task's word for that, on one GPU or none.
local function affine(need) return need.warm ~= nil and need.kind == "t" and need.k == 1 end

-- The same of a lane or a shape, without reading it.
local function sounds_affine(shape)
  return string.find(shape, ":t:1:w=", 1, true) ~= nil or string.find(shape, ":t:1:[^/]*;w=") ~= nil
end

-- The one reservation there is (see _reserve), or false. One that cannot be read is none: the next one is written over it.
local seat
local function reservation()
  if seat == nil then
    local v = call("HMGET", K.reserved, "id", "dev", "at", "since", "by", "tenant", "score", "shape", "due")
    local score = tonumber(v[7] or nil)
    seat = v[1] and score and need_of(v[8] or "") and { id = v[1], dkey = node_of(v[2] or "") and v[2], at = tonumber(v[3] or nil),
      since = tonumber(v[4] or nil) or now, by = tonumber(v[5] or nil) or 0, tenant = v[6] or "", score = score, shape = v[8],
      due = tonumber(v[9] or nil) } or false
  end
  return seat
end

-- Nothing is kept back any more on the node of a device: others may fit there now. A pass looks (see pass_unkept); where a
-- script makes none, the next tick does. Node names hold no slash.
local unkept = false
local function free_seat(dkey)
  if not dkey then return end
  unkept = true
  call("HSET", K.reserved, "freed", (call("HGET", K.reserved, "freed") or "") .. node_of(dkey) .. "/")
end

-- What waits no longer needs nothing kept for it. stays: it does wait; how often and since when it was passed is not forgotten.
local function vacate(id, stays)
  if not reservation() or seat.id ~= id then return end
  if stays and call("EXISTS", K.alloc .. id) == 1 then
    call("HSET", K.alloc .. id, "by", seat.by, "since", seat.since, "due", seat.due or "")
  end
  call("HDEL", K.reserved, "id", "dev", "at", "since", "by", "tenant", "score", "shape", "due")
  free_seat(seat.dkey)
  seat = false
end

-- Who goes before the holder of the reservation in its own tenant's line takes it over. Tenants' turns change all the time:
-- across them the reservation stays where it is, so that it comes to something.
local function unseat(tenant, score)
  if reservation() and seat.tenant == tenant and tonumber(score) < seat.score then vacate(seat.id, true) end
end

-- a: shape, pace, tenant, score.
local function enqueue(id, a)
  local lane, tenant = lane_of(a), a.tenant or ""
  call("ZADD", K.waiting, a.score, id)
  call("ZADD", K.line .. lane, a.score, id)
  if sounds_affine(a.shape) then call("ZADD", K.patient .. lane, "NX", NOW, id) end
  if call("ZADD", K.turn .. tenant, "LT", a.score, lane) == 1 then
    call("ZINCRBY", K.shapes, 1, a.shape)
    call("SADD", K.queued, tenant)
  end
  unseat(tenant, a.score)
end

-- Nobody stands in a lane any more.
local function close_lane(lane, shape, tenant)
  if call("ZREM", K.turn .. tenant, lane) == 0 then return end
  if tonumber(call("ZINCRBY", K.shapes, -1, shape)) <= 0 then call("ZREM", K.shapes, shape) end
  if call("EXISTS", K.turn .. tenant) == 0 then call("SREM", K.queued, tenant) end
end

-- stays: it is in line again at once.
local function dequeue(id, a, stays)
  local lane, tenant = lane_of(a), a.tenant or ""
  call("ZREM", K.waiting, id)
  call("ZREM", K.line .. lane, id)
  if not stays and sounds_affine(a.shape) and call("ZREM", K.patient .. lane, id) == 1 and call("EXISTS", K.patient .. lane) == 0 then
    call("ZREM", K.patience, lane)
  end
  local head = call("ZRANGE", K.line .. lane, 0, 0, "WITHSCORES")
  if head[1] then call("ZADD", K.turn .. tenant, head[2], lane) else close_lane(lane, a.shape, tenant) end
  vacate(id, stays)
end
