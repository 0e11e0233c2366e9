-- Say what is used of a device, and of its node's RAM, that no claim accounts for: it is free by the claims, and not there.
-- flags: allow-oom
-- uses: base events cores index line limits runtimes tenants dates claim breaker reserve place forecast pass
-- KEYS: prefix. ARGV from 5: worker, incarnation, node/device, "1" if it is about to register there (else it has).
--   GPU memory in MB ("": not measured now, what was said last stays): used by processes that are not the worker's; held by
--   those of the worker that run no task; used by tasks beyond their claims; "1" if process ids are hidden (the first is
--   then all that is used beyond the claims of what the worker runs).
--   RAM in MB ("": the same): used of the whole node beyond what is reserved; of that, by the worker's processes; by its
--   tasks beyond their claims.
-- What a worker calls foreign may be used by others that hold a claim: allocations made by hand, and tasks of another worker
-- that hold this GPU, too. Up to their claims it is accounted for. Free is what no claim holds, less what is withheld.
-- Reply: {grants, GPU MB withheld, RAM MB withheld, 1 if something waits that would fit there if no process without a task
--   held memory}; {} if the device is unknown, or another worker's.
-- Touches: dev, node, index, order, events and all that pass touches; reads on, alloc, shapes, workers.
local MATTERS = 64 -- MB by which it has to change for an event
local worker, inc, dkey = ARGV[5], ARGV[6], ARGV[7]
local d = load_device(dkey)
if not d then return {} end
if ARGV[8] == "1" then
  local left = tonumber(call("ZSCORE", K.workers, d.worker) or 0) - now
  if d.worker ~= "" and d.worker ~= worker and left > 0 then return {} end
elseif d.worker ~= worker or d.inc ~= inc then
  return {}
end
call("HSET", K.dev .. dkey, "whby", inc)
local node = node_of(dkey)
local grown, grants = false, {}

-- What others than tasks of this device's worker hold a claim on: of the GPU memory (g) of a device; of RAM (r), with a device of
-- the node as their first.
local function claimed_by_others(key, what)
  local sum = 0
  for _, id in ipairs(call("SMEMBERS", K.on .. key)) do
    local v = call("HMGET", K.alloc .. id, "shape", "dev")
    local need, first = v[1] and need_of(v[1]), v[2] == key
    local theirs = need and (need.kind == "m" or not first)
    if theirs and (first or what == "g") then sum = sum + need[what] end
  end
  return sum
end

-- Write down what is withheld now, of what, and what was told of it last. Returns whether it is to be told of again.
local function note_down(key, sum, ...)
  local told = tonumber(string.match(call("HGET", key, "whof") or "", "%d+$") or 0)
  local matters = math.abs(sum - told) >= MATTERS or (sum == 0) ~= (told == 0)
  call("HSET", key, "wh", sum, "whof", table.concat({ ... }, " ") .. " " .. (matters and sum or told))
  return matters
end

local idle = 0
if ARGV[9] ~= "" and kind_of(dkey) == "gpu" then
  local foreign, over, hidden = tonumber(ARGV[9]), tonumber(ARGV[11]), ARGV[12]
  idle = tonumber(ARGV[10])
  if foreign > 0 then foreign = math.max(0, foreign - claimed_by_others(dkey, "g")) end
  local sum, before = foreign + idle + over, d.wh
  if note_down(K.dev .. dkey, sum, foreign, idle, over, hidden) then
    event("withheld", dkey, "", "withheld_mb", sum, "foreign_mb", foreign, "leftover_mb", idle, "overuse_mb", over,
      "pids_hidden", hidden)
  end
  if sum ~= before then
    d.free, d.wh = d.free + before - sum, sum
    store_device(dkey, d)
    grown = sum < before
  end
end

local v = call("HMGET", K.node .. node, "wh", "rfree", "devs")
local ram = tonumber(v[1] or nil) or 0
if ARGV[13] ~= "" then
  call("HSET", K.dev .. dkey, "rown", ARGV[14] .. " " .. ARGV[15])
  local foreign, over, hand = tonumber(ARGV[13]), 0, 0
  for _, device in ipairs(split(v[3])) do
    local own, more = string.match(call("HGET", K.dev .. node .. "/" .. device, "rown") or "", "^(%d+) (%d+)$")
    foreign, over = foreign - (own or 0), over + (more or 0)
  end
  if foreign > 0 then
    for _, device in ipairs(split(v[3])) do hand = hand + claimed_by_others(node .. "/" .. device, "r") end
    foreign = foreign - hand
  end
  foreign = math.max(0, foreign)
  local sum = foreign + over
  if note_down(K.node .. node, sum, foreign, 0, over, 0) then
    event("withheld", node, "", "withheld_mb", sum, "foreign_mb", foreign, "overuse_mb", over)
  end
  if sum ~= ram then
    call("HSET", K.node .. node, "rfree", v[2] + ram - sum)
    grown = grown or sum < ram
    ram = sum
  end
end
local n = load_node(node)
if grown then pass_node(n, grants) end

-- Whether it is the memory of processes without a task that something waits for.
local function blocked()
  local fleet = fleet_of(n)
  local at = find_in(fleet, dkey)
  local mode, free, sfree = fleet[at + 1], fleet[at + 2], fleet[at + 3]
  for _, shape in ipairs(idle > 0 and mode ~= "x" and call("ZRANGE", K.shapes, 0, -1) or {}) do
    local need = need_of(shape)
    local open = need and (need.kind == "m" or index_of(mode, sfree) == "sched")
    local mb = open and amount(need, n, at)
    if open and mb > free and mb <= free + idle and need.c <= n.c and need.r <= n.r then return 1 end
  end
  return 0
end
return { grants, d.wh, ram, blocked() }
