-- Library: the index of devices. Touches: dev, node, index, order, meta (read).
-- A device that may take work is in exactly one of two indexes: "sched" (its worker has a free slot) or "idle" (no
-- worker, or no free slot: only allocations made by hand may use it). Member: eight-digit registration order, "|",
-- node/device. Score of a GPU: free memory · 2^27 + free memory of all GPUs of its node, so that a range query yields best
-- fit: least memory left, then the fullest node, then registration order. (Of GPUs with equally much free most are empty
-- ones. Those of a node that is in use already are taken first, so that whole nodes stay free: 94 % of the GPUs of a real
-- cluster can be given away so, against 85 % when of equals that with fewest free cores is taken; see docs/benchmarks.md.)
-- Score of a pseudo-device cpu: free memory of all GPUs of its node · 8192 + free cores − 2^50, below every GPU's: work without
-- a GPU goes where it takes cores from no idle GPU. For first fit the same members also stand, by registration order, in one set per power of two of free
-- memory, GPUs and pseudo-devices apart.
-- often: kind_of score_of bucket load_node fleet_of find_in index_of gpu_free reindex
local NODES, CPU = 134217728, 1125899906842624

local function kind_of(dkey) return string.sub(dkey, -4) == "/cpu" and "cpu" or "gpu" end

-- together: what all GPUs of the node have free; cfree: its free cores.
local function score_of(kind, free, together, cfree)
  return kind == "cpu" and together * 8192 + cfree - CPU or free * NODES + together
end

local function bucket(kind, free)
  if kind == "cpu" or free <= 0 then return 0 end
  local _, exponent = math.frexp(free)
  return exponent
end

local function load_node(node)
  local v = call("HMGET", K.node .. node, "cfree", "rfree", "map", "own", "fleet", "mems")
  return v[1] and { name = node, key = K.node .. node, c = tonumber(v[1]), r = tonumber(v[2]), map = v[3], own = v[4],
    packed = v[5], mems = v[6] }
end

-- What changes with every claim on a node's devices stands in one field of the node, as a packed list of four for each
-- device, in order of registration: member, mode ("w": its worker takes tasks; "h": only allocations made by hand; "x":
-- nothing), free memory, free slots.
local function fleet_of(n)
  if not n.fleet then
    -- What cannot be read is an empty one: verify tells, repair makes it anew.
    local ok, list = pcall(cmsgpack.unpack, n.packed or "")
    n.fleet = ok and type(list) == "table" and list or {}
  end
  return n.fleet
end

local function find_in(fleet, dkey)
  for at = 1, #fleet, 4 do
    if string.sub(fleet[at], 10) == dkey then return at end
  end
end

-- Capacities as a node has them written down, by that text: many nodes are alike.
local UNPACKED = {}

-- Memory in all of the devices of a node, in the order of its fleet, as far as it is written down.
local function capacities_of(n)
  local packed = n.mems or ""
  local mems = UNPACKED[packed]
  if not mems then
    local ok, list = pcall(cmsgpack.unpack, packed)
    mems = ok and type(list) == "table" and list or {}
    UNPACKED[packed] = mems
  end
  return mems
end

-- MB that `need` takes of the device that stands at `at` in its node's fleet: a share is one of its memory.
local function amount(need, n, at)
  if not need.s then return need.g end
  local mem = capacities_of(n)[(at + 3) / 4] or tonumber(call("HGET", K.dev .. string.sub(fleet_of(n)[at], 10), "mem")) or 0
  return math.max(need.least, math.ceil(mem * need.s / 1000))
end

-- The index a device belongs in, or "".
local function index_of(mode, sfree)
  if mode == "x" then return "" end
  return (mode == "w" and sfree > 0) and "sched" or "idle"
end

-- What the GPUs of a fleet have free together (a pseudo-device has no memory). One that has less than nothing (its node has
-- shrunk, or others use what it has) takes nothing from the others.
local function gpu_free(fleet)
  local sum = 0
  for i = 3, #fleet, 4 do
    local free = fleet[i]
    if free > 0 then sum = sum + free end
  end
  return sum
end

-- Change a device of a fleet and put it where it belongs; the scores of the node's other devices are mended with it. cfree:
-- the node's free cores, `shifted` if they changed. The caller stores the fleet.
local function reindex(fleet, at, mode, free, sfree, cfree, shifted)
  local member = fleet[at]
  local kind = kind_of(member)
  local old_ix, old_bk = index_of(fleet[at + 1], fleet[at + 3]), bucket(kind, fleet[at + 2])
  local ix, bk = index_of(mode, sfree), bucket(kind, free)
  local moved = free ~= fleet[at + 2] and kind == "gpu"
  fleet[at + 1], fleet[at + 2], fleet[at + 3] = mode, free, sfree
  if old_ix ~= ix or old_bk ~= bk then
    if old_ix ~= "" then
      if old_ix ~= ix then call("ZREM", K.index .. old_ix, member) end
      call("ZREM", K.order .. old_ix .. ":" .. kind .. ":" .. old_bk, member)
    end
    if ix ~= "" then
      call("ZADD", K.order .. ix .. ":" .. kind .. ":" .. bk, tonumber(string.sub(member, 1, 8)), member)
    end
  end
  local moves = { sched = {}, idle = {} }
  local together, mended = gpu_free(fleet), moved or shifted
  for i = mended and 1 or at, mended and #fleet or at, 4 do
    local other = fleet[i]
    local theirs = kind_of(other)
    if i == at or moved or theirs == "cpu" then
      local out = moves[index_of(fleet[i + 1], fleet[i + 3])]
      if out then
        local n = #out
        out[n + 1], out[n + 2] = score_of(theirs, fleet[i + 2], together, cfree), other
      end
    end
  end
  if moves.sched[1] then call("ZADD", K.index .. "sched", unpack(moves.sched)) end
  if moves.idle[1] then call("ZADD", K.index .. "idle", unpack(moves.idle)) end
end

local function load_device(dkey)
  local v = call("HMGET", K.dev .. dkey, "ord", "worker", "st", "live", "open", "near", "queue", "uuid", "mem", "slots",
    "inc", "box", "head", "wh", "whby")
  if not v[1] then return nil end
  local fleet = fleet_of(load_node(node_of(dkey)))
  local at = find_in(fleet, dkey)
  if not at then return nil end
  return { ord = v[1], worker = v[2], st = v[3], live = v[4], open = v[5], near = v[6], queue = v[7], uuid = v[8],
    mem = tonumber(v[9]), slots = tonumber(v[10]), inc = v[11], free = fleet[at + 2], sfree = fleet[at + 3],
    box = v[12] or "", head = v[13] or "", wh = tonumber(v[14] or nil) or 0, whby = v[15] }
end

-- Whoever measured a device is gone: nothing of it is withheld any more (see withhold.lua), nor of its node's RAM if that was
-- the last one there. The caller stores the device.
local function unwithhold(dkey, d)
  d.free, d.wh, d.whby = d.free + d.wh, 0, false
  call("HDEL", K.dev .. dkey, "whof", "whby", "rown")
  local node = node_of(dkey)
  local v = call("HMGET", K.node .. node, "wh", "rfree", "devs")
  if not v[1] then return end
  for _, device in ipairs(split(v[3])) do
    if call("HEXISTS", K.dev .. node .. "/" .. device, "rown") == 1 then return end
  end
  call("HSET", K.node .. node, "rfree", v[2] + (tonumber(v[1]) or 0))
  call("HDEL", K.node .. node, "wh", "whof")
end

-- What a device takes: tasks ("w"), only allocations made by hand ("h"), or nothing ("x"). While the ledger is paused (see
-- _epoch) or stopped (see pause) no device takes anything.
local function mode_of(d)
  if d.live ~= "1" or d.st ~= "ready" then return "x" end
  if call("HEXISTS", K.meta, "paused") == 1 or call("HEXISTS", K.meta, "stopped") == 1 then return "x" end
  return (d.worker ~= "" and d.open == "1") and "w" or "h"
end

-- Reindex and store one device after its fields changed.
local function store_device(dkey, d)
  local n = load_node(node_of(dkey))
  local fleet = fleet_of(n)
  local at = find_in(fleet, dkey)
  if not at then
    at = #fleet + 1
    fleet[at], fleet[at + 1], fleet[at + 2], fleet[at + 3] = d.ord .. "|" .. dkey, "x", 0, d.sfree
  end
  reindex(fleet, at, mode_of(d), d.free, d.sfree, n.c, false)
  call("HSET", n.key, "fleet", cmsgpack.pack(fleet))
  call("HSET", K.dev .. dkey, "worker", d.worker, "st", d.st, "live", d.live, "slots", d.slots, "inc", d.inc,
    "queue", d.queue, "open", d.open, "box", d.box, "head", d.head, "wh", d.wh or 0)
end

-- Write down what memory the devices of a node have in all, in the order of its fleet, for those who look at many nodes.
local function store_capacities(node)
  local fleet, mems = fleet_of(load_node(node)), {}
  for at = 1, #fleet, 4 do mems[#mems + 1] = tonumber(call("HGET", K.dev .. string.sub(fleet[at], 10), "mem")) end
  call("HSET", K.node .. node, "mems", cmsgpack.pack(mems))
end

-- Call `visit(dkey)` for every device there is.
local function each_device(visit)
  for _, node in ipairs(call("SMEMBERS", K.known)) do
    for _, device in ipairs(split(call("HGET", K.node .. node, "devs"))) do visit(node .. "/" .. device) end
  end
end

-- Count a device among the capacity classes that "could it ever fit?" is asked of; "" when it is withdrawn.
local function set_class(dkey, class)
  local before = call("HGET", K.dev .. dkey, "class") or ""
  if before == class then return end
  if before ~= "" and call("HINCRBY", K.classes, before, -1) == 0 then call("HDEL", K.classes, before) end
  if class ~= "" then call("HINCRBY", K.classes, class, 1) end
  call("HSET", K.dev .. dkey, "class", class)
end
