-- The whole pool, or one of its nodes, at one instant.
-- flags: no-writes
-- uses: base index limits
-- KEYS: prefix. ARGV from 5: a node (its workers are left out), or nothing.
-- Reply: {now, counts {delayed, waiting, granted, held, on hold}, nodes, workers, why nothing is granted
--   ("stopped" by an operator | "paused" until workers have reported | "")}.
--   node: {name, lease left ms, own, map, ram, free ram, state, devices, labels (JSON), RAM withheld, of what (see withhold)};
--   device: {id, uuid, model, mem, free, state, live, worker, queue, slots, free slots, allocation ids, mode (see index), why it
--   is cordoned, withheld, of what, affinities that are loaded there}; worker: {name, node/device, pid, lease left ms, incarnation, what it measured (JSON), when (ms)}
-- Touches: nothing (reads meta, known, node, dev, on, nodes, workers, worker, warm).
local nodes, workers = {}, {}
local names
if ARGV[5] then
  names = { call("SISMEMBER", K.known, ARGV[5]) == 1 and ARGV[5] or nil }
else
  names = call("SMEMBERS", K.known)
  table.sort(names)
end
for i, name in ipairs(names) do
  local n = call("HMGET", K.node .. name, "own", "map", "ram", "rfree", "st", "devs", "labels", "wh", "whof")
  local fleet = fleet_of(load_node(name))
  local devices = {}
  for _, device in ipairs(split(n[6])) do
    local dkey = name .. "/" .. device
    local d = call("HMGET", K.dev .. dkey, "uuid", "model", "mem", "st", "live", "worker", "queue", "slots", "why",
      "wh", "whof", "warm")
    local loaded = {}
    for _, word in ipairs(d[12] and words_of(dkey) or {}) do if is_warm(word, dkey) then loaded[#loaded + 1] = word end end
    local at = find_in(fleet, dkey)
    devices[#devices + 1] = { device, d[1], d[2], d[3], fleet[at + 2], d[4], d[5], d[6], d[7], d[8], fleet[at + 3],
      call("SMEMBERS", K.on .. dkey), fleet[at + 1], d[9] or "", d[10] or "0", d[11] or "", loaded }
  end
  local lease = call("ZSCORE", K.nodes, name)
  nodes[i] = { name, lease and (lease - now) or -1, n[1], n[2], n[3], n[4], n[5], devices, n[7] or "{}",
    n[8] or "0", n[9] or "" }
end
for i, name in ipairs(ARGV[5] and {} or call("ZRANGE", K.workers, 0, -1)) do
  local w = call("HMGET", K.worker .. name, "dkey", "pid", "inc", "use", "use_at")
  workers[i] = { name, w[1] or "", w[2] or "0", call("ZSCORE", K.workers, name) - now, w[3] or "", w[4] or "", w[5] or "" }
end
local why = call("HMGET", K.meta, "stopped", "paused")
return { now, { call("ZCARD", K.delayed), call("ZCARD", K.waiting), call("ZCARD", K.granted), call("ZCARD", K.held),
  call("ZCARD", K.onhold) }, nodes, workers, why[1] and "stopped" or why[2] and "paused" or "" }
