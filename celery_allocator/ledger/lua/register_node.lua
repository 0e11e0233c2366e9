-- Tell the ledger what a node has (new, again, or changed) and extend its lease.
-- flags: allow-oom
-- uses: base events cores index line limits runtimes tenants dates claim breaker reserve place forecast pass
-- KEYS: prefix. ARGV from 5: node, lease ms, core map ("1" ours, "-" not, one character per core id), RAM MB, its labels (JSON:
--   name → value), how near its GPUs are to each other (JSON: "gpu_0 gpu_1" → step; see links_of), then six per device: id, GPU memory MB, UUID, model, index, affinity ("0-15 32-47" or "").
-- Devices that are not named any more go offline unless a worker serves them. What is held stays held: free amounts
-- change by the difference, and may go below zero until tasks end.
-- Reply: grants. Touches: nodes, known, node, dev, meta, classes, events and all that pass touches.
local node, own, ram = ARGV[5], ARGV[7], tonumber(ARGV[8])
local old = call("HMGET", K.node .. node, "own", "map", "ram", "rfree", "devs", "st", "labels", "links")
local map = own
if old[1] then
  -- Cores that were ours and are not free now are held: keep them so.
  for i = 1, #old[2] do
    if string.sub(old[2], i, i) == "0" then
      if i > #map then map = map .. string.rep("-", i - #map) end
      map = string.sub(map, 1, i - 1) .. "0" .. string.sub(map, i + 1)
    end
  end
end
own = own .. string.rep("-", #map - #own)
local cfree = count_free(map)
local rfree = old[1] and (tonumber(old[4]) + ram - tonumber(old[3])) or ram
local labels, links = ARGV[9], ARGV[10]
local changed = old[1] ~= own or tonumber(old[3] or -1) ~= ram or (old[7] or "{}") ~= labels or (old[8] or "{}") ~= links
local was_live = call("ZSCORE", K.nodes, node)
local lease = now + tonumber(ARGV[6])
call("ZADD", K.nodes, was_live and tonumber(was_live) > lease and was_live or lease, node)
call("SADD", K.known, node)
local state = old[6] or "ready"
local names, listed, sizes, states = {}, {}, {}, {}

local function class_of(mem) return mem .. ":" .. count_free(own) .. ":" .. ram end

local function upsert(device, mem, uuid, model, index, near)
  local dkey = node .. "/" .. device
  local d = load_device(dkey)
  if not d then
    changed = true
    local ord = string.format("%08d", call("HINCRBY", K.meta, "ord", 1))
    d = { ord = ord, free = mem, mem = mem, sfree = 0, worker = "", st = state, live = "0", near = near, queue = "",
      uuid = uuid, slots = 0, inc = "", open = "0", box = "", head = "" }
    call("HSET", K.dev .. dkey, "ord", ord)
  end
  if d.live ~= "1" or d.mem ~= mem then changed = true end
  d.free = d.free + mem - d.mem
  d.live = "1"
  call("HSET", K.dev .. dkey, "mem", mem, "uuid", uuid, "model", model, "index", index, "near", near)
  set_class(dkey, class_of(mem))
  if d.near ~= near or d.uuid ~= uuid then changed = true end
  d.near, d.uuid = near, uuid
  store_device(dkey, d)
  names[#names + 1] = device
  states[#states + 1] = device .. ":" .. d.st .. ":1"
  listed[device] = true
end

call("HSET", K.node .. node, "own", own, "map", map, "cfree", cfree, "ram", ram, "rfree", rfree, "st", state, "labels", labels, "links", links)
if links ~= "{}" then call("HSET", K.meta, "linked", 1) end
for i = 11, #ARGV, 6 do
  sizes[#sizes + 1] = ARGV[i] .. ":" .. ARGV[i + 1]
  upsert(ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5])
end
upsert("cpu", 0, "", "", "", "")
for _, device in ipairs(split(old[5])) do
  if not listed[device] then
    local dkey = node .. "/" .. device
    local d = load_device(dkey)
    names[#names + 1] = device
    if d.worker == "" then
      if d.live == "1" then d.live, changed = "0", true end
      unwithhold(dkey, d)
      set_class(dkey, "")
    else
      set_class(dkey, class_of(d.mem))
    end
    states[#states + 1] = device .. ":" .. d.st .. ":" .. d.live
    store_device(dkey, d)
  end
end
call("HSET", K.node .. node, "devs", table.concat(names, " "))
if changed then count_node(node) end
store_capacities(node)
local grants = {}
if changed then
  event("node", node, "", "cores", count_free(own), "ram_mb", ram, "devices", #names - 1,
    "gpu_memory_mb", table.concat(sizes, " "), "state", state, "states", table.concat(states, " "))
  pass_node(load_node(node), grants)
end
return grants
