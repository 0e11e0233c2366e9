-- Library: the index of devices. Touches: dev, node, index, order.
-- A device that may take work is in exactly one of two indexes: "sched" (its worker has a free slot) or "idle" (no
-- worker, or no free slot: only allocations made by hand may use it). Member: eight-digit registration order, "|",
-- node/device. Score: free memory · 8192 + free cores of the node, so that a range query yields best fit: least memory
-- left, then fewest cores left, then registration order. For first fit the same members also stand, by registration
-- order, in one set per power of two of free memory.
local CORES = 8192

local function bucket(kind, free)
  if kind == "cpu" or free <= 0 then return 0 end
  local _, exponent = math.frexp(free)
  return exponent
end

-- Put a device where it belongs after a change. d: kind, ord, free, sfree, worker, open, st, live, ix, bk; cfree: node's free cores.
-- Returns the fields ix and bk to be stored with the device.
local function reindex(dkey, d, cfree)
  local member = d.ord .. "|" .. dkey
  local ix = ""
  if d.live == "1" and d.st == "ready" then
    ix = (d.worker ~= "" and d.open == "1" and d.sfree > 0) and "sched" or "idle"
  end
  local bk = bucket(d.kind, d.free)
  if d.ix ~= ix and d.ix ~= "" then call("ZREM", K.index .. d.ix .. ":" .. d.kind, member) end
  if (d.ix ~= ix or d.bk ~= bk) and d.ix ~= "" then
    call("ZREM", K.order .. d.ix .. ":" .. d.kind .. ":" .. d.bk, member)
  end
  if ix ~= "" then
    call("ZADD", K.index .. ix .. ":" .. d.kind, d.free * CORES + cfree, member)
    if d.ix ~= ix or d.bk ~= bk then
      call("ZADD", K.order .. ix .. ":" .. d.kind .. ":" .. bk, tonumber(d.ord), member)
    end
  end
  d.ix, d.bk = ix, bk
  return ix, bk
end

-- The free cores of a node changed by `delta`: mend the scores of its devices, wherever they are indexed.
local function shift_cores(members, delta)
  if delta == 0 then return end
  local gpus, cpu = {}, nil
  for _, member in ipairs(members) do
    if string.sub(member, -4) == "/cpu" then cpu = member else gpus[#gpus + 1] = member end
  end
  local left = #gpus
  for _, ix in ipairs({ "sched:gpu", "idle:gpu" }) do
    if left > 0 then
      local scores = call("ZMSCORE", K.index .. ix, unpack(gpus))
      local args, n = {}, 0
      for i, score in ipairs(scores) do
        if score then
          args[n + 1], args[n + 2] = score + delta, gpus[i]
          n = n + 2
          left = left - 1
        end
      end
      if n > 0 then call("ZADD", K.index .. ix, unpack(args)) end
    end
  end
  if cpu and not call("ZADD", K.index .. "sched:cpu", "XX", "INCR", delta, cpu) then
    call("ZADD", K.index .. "idle:cpu", "XX", "INCR", delta, cpu)
  end
end

local function load_device(dkey)
  local v = call("HMGET", K.dev .. dkey, "kind", "ord", "free", "sfree", "worker", "st", "live", "ix", "bk", "near",
    "queue", "uuid", "mem", "slots", "inc", "open")
  if not v[1] then return nil end
  return { kind = v[1], ord = v[2], free = tonumber(v[3]), sfree = tonumber(v[4]), worker = v[5], st = v[6], live = v[7],
    ix = v[8], bk = tonumber(v[9]), near = v[10], queue = v[11], uuid = v[12], mem = tonumber(v[13]),
    slots = tonumber(v[14]), inc = v[15], open = v[16] }
end

-- Count a device among the capacity classes that "could it ever fit?" is asked of; "" when it is withdrawn.
local function set_class(dkey, class)
  local before = call("HGET", K.dev .. dkey, "class") or ""
  if before == class then return end
  if before ~= "" and call("HINCRBY", K.classes, before, -1) == 0 then call("HDEL", K.classes, before) end
  if class ~= "" then call("HINCRBY", K.classes, class, 1) end
  call("HSET", K.dev .. dkey, "class", class)
end

-- Reindex and store one device after its fields changed.
local function store_device(dkey, d, cfree)
  reindex(dkey, d, cfree)
  call("HSET", K.dev .. dkey, "free", d.free, "sfree", d.sfree, "worker", d.worker, "st", d.st, "live", d.live,
    "ix", d.ix, "bk", d.bk, "slots", d.slots, "inc", d.inc, "queue", d.queue, "open", d.open)
end
