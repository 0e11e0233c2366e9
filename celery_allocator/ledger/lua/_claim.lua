-- Library: take and give back resources. Touches: node, dev, on, held, granted, manual, onhold, aside, alloc, tasks, tomb,
-- index, order, meta; a device's mailbox.
-- The invariant lives here: every amount taken in `claim` is given back in `unclaim`, and nowhere else does one change.
-- often: claim unclaim load_alloc record_grant withdraw index_task unindex_task forget deliver fix_share

-- Incarnation of a worker that has claimed tasks again and not registered yet (see reclaim).
local RECLAIMING = "reclaiming"

-- A claim on several GPUs of one node has them in `on` of its need, dkey first. Each gives the memory; cores, RAM and a slot
-- are taken once, with the first. All are taken and given back in one step.
-- Take need from dkey for allocation id. n: its node as `load_node` read it, changed along. token: one drawn already, or
-- nil. cores: those it holds already, or nil to pick some. Returns token, core list text, device (queue, uuid, free,
-- mailbox). The caller has checked that it fits.
local function claim(id, dkey, need, n, token, cores)
  local v = call("HMGET", K.dev .. dkey, "near", "queue", "uuid", "box", "head")
  local fleet = fleet_of(n)
  local at = find_in(fleet, dkey)
  cores = cores or pick_cores(n.map, need.c, v[1])
  local free, sfree = fleet[at + 2] - need.g, fleet[at + 3]
  if need.kind == "t" then sfree = sfree - 1 end
  n.c, n.r = n.c - need.c, n.r - need.r
  token = token or call("HINCRBY", K.meta, "seq", 1)
  local uuids = need.on and { v[3] }
  for i = 2, #(need.on or {}) do
    local other = find_in(fleet, need.on[i])
    reindex(fleet, other, fleet[other + 1], fleet[other + 2] - need.g, fleet[other + 3], n.c, false)
    call("SADD", K.on .. need.on[i], id)
    uuids[i] = call("HGET", K.dev .. need.on[i], "uuid")
  end
  reindex(fleet, at, fleet[at + 1], free, sfree, n.c, need.c > 0)
  if need.c > 0 then
    n.map = mark_cores(n.map, cores, "0")
    call("HSET", n.key, "fleet", cmsgpack.pack(fleet), "rfree", n.r, "map", n.map, "cfree", n.c)
  else
    call("HSET", n.key, "fleet", cmsgpack.pack(fleet), "rfree", n.r)
  end
  call("SADD", K.on .. dkey, id)
  call("ZADD", K.held, NOW, id)
  apart_read[n.name] = nil
  return token, table.concat(cores, ","), { queue = v[2], uuid = v[3], free = free, box = v[4], head = v[5],
    uuids = uuids }
end

-- Give back what allocation id holds on dkey. Returns its node as it is then.
local function unclaim(id, dkey, need, cores)
  local n = load_node(node_of(dkey))
  local fleet = fleet_of(n)
  local at = find_in(fleet, dkey)
  local free, sfree, before = fleet[at + 2] + need.g, fleet[at + 3], n.c
  if need.kind == "t" then sfree = sfree + 1 end
  n.r = n.r + need.r
  if need.c > 0 then
    n.map = mark_cores(n.map, core_list(cores), "1", n.own)
    n.c = count_free(n.map)
  end
  for i = 2, #(need.on or {}) do
    local other = find_in(fleet, need.on[i])
    reindex(fleet, other, fleet[other + 1], fleet[other + 2] + need.g, fleet[other + 3], n.c, false)
    call("SREM", K.on .. need.on[i], id)
  end
  reindex(fleet, at, fleet[at + 1], free, sfree, n.c, n.c ~= before)
  if need.c > 0 then
    call("HSET", n.key, "fleet", cmsgpack.pack(fleet), "rfree", n.r, "map", n.map, "cfree", n.c)
  else
    call("HSET", n.key, "fleet", cmsgpack.pack(fleet), "rfree", n.r)
  end
  call("SREM", K.on .. dkey, id)
  call("ZREM", K.held, id)
  apart_read[n.name] = nil
  return n
end

local function load_alloc(id)
  local v = call("HMGET", K.alloc .. id, "state", "tok", "shape", "dev", "cores", "tid", "name", "s_ms", "score", "strat",
    "late", "loss", "exp", "ttl", "eta", "nonce", "worker", "queue", "tenant", "pace", "size", "xrt", "devs", "asked")
  if not v[1] then return nil end
  return { state = v[1], tok = v[2], shape = v[3], dev = v[4], cores = v[5], tid = v[6], name = v[7], s_ms = v[8],
    score = v[9], strat = v[10], late = v[11], loss = tonumber(v[12] or "0"), exp = v[13], ttl = v[14], eta = v[15],
    nonce = v[16], worker = v[17], queue = v[18], tenant = v[19] or "", pace = v[20] or "", size = v[21] or "",
    xrt = v[22], devs = v[23] or nil, asked = v[24] or nil }
end

-- A share of a GPU has become MB: while it is held its shape says how many, so that all that counts finds them there. What was
-- asked for is kept, for when it waits again.
local function fix_share(id, a, need)
  if not need.s or a.asked then return end
  a.asked = a.shape
  a.shape = shape_of(need.g, need.c, need.r, need.kind, need.k, need.more)
  call("HSET", K.alloc .. id, "shape", a.shape, "asked", a.asked)
end

local function unfix_share(id, a)
  if not a.asked then return end
  a.shape, a.asked = a.asked, nil
  call("HSET", K.alloc .. id, "shape", a.shape)
  call("HDEL", K.alloc .. id, "asked")
end

-- Record a claim just taken, with any more fields of its allocation. A task's allocation is granted until its worker
-- starts it; one made by hand runs at once.
local function record_grant(id, a, dkey, need, token, cores, d, ...)
  charge(a.tenant or "", need, 1)
  if need.kind == "m" then
    score_date(id)
    call("ZADD", K.manual, now + a.ttl, id)
    call("HSET", K.alloc .. id, "state", "running", "tok", token, "dev", dkey, "cores", cores, "queue", d.queue,
      "uuid", d.uuid, "g_ms", NOW, "s_ms", NOW, ...)
  else
    call("ZADD", K.granted, now + DEADLINE, id)
    call("HSET", K.alloc .. id, "state", "granted", "tok", token, "dev", dkey, "cores", cores, "queue", d.queue,
      "uuid", d.uuid, "g_ms", NOW, ...)
  end
  local told = { unpack(a.first or { "shape", a.shape }) }
  fix_share(id, a, need)
  for i = 1, #told, 2 do if told[i] == "shape" then told[i + 1] = a.shape end end
  if need.on then
    local devices = table.concat(need.on, " ")
    call("HSET", K.alloc .. id, "devs", devices, "uuids", table.concat(d.uuids, " "))
    told[#told + 1], told[#told + 2] = "devices", devices
  end
  if affine(need) then
    local loaded = is_warm(need.warm, dkey) and "hit" or "miss"
    warm_up(dkey, need.warm)
    call("HSET", K.alloc .. id, "warm", loaded)
    told[#told + 1], told[#told + 2] = "warm", loaded
  end
  event("granted", id, a.tid, "name", a.name, "device", dkey, "token", token, "cores", cores, unpack(told))
end

-- Take an allocation that holds something back to holding nothing; its record stays. Returns its node.
local function withdraw(id, a)
  local need = need_of(a.shape)
  need.on = a.devs and split(a.devs)
  local n = unclaim(id, a.dev, need, a.cores)
  charge(a.tenant, need, -1)
  if affine(need) then
    -- What has not started has loaded nothing.
    if a.state == "running" then warm_up(a.dev, need.warm)
    elseif call("HGET", K.alloc .. id, "warm") == "miss" then cool(a.dev, need.warm) end
  end
  if need.kind == "m" then
    call("ZREM", K.manual, id)
  elseif a.state == "granted" then
    call("ZREM", K.granted, id)
  end
  return n
end

-- Take an allocation that holds nothing out of where it waits: the line, the delayed, or those on hold.
local function take_out(id, a)
  if a.state == "waiting" then
    dequeue(id, a)
  elseif a.state == "delayed" then
    call("ZREM", K.delayed, id)
  elseif a.state == "on_hold" then
    call("ZREM", K.onhold, id)
    call("ZREM", K.aside .. a.name, id)
  end
end

-- Enter what is on hold where such are listed: with the others, and with those of its name that a breaker has set aside.
local function list_held(id, a, by)
  call("ZADD", K.onhold, now, id)
  if by == "breaker" then call("ZADD", K.aside .. a.name, a.score, id) end
end

-- Set aside what waits: it keeps its place, and is not granted before it is let go on. by: who holds it.
local function hold(id, a, by)
  take_out(id, a)
  call("HSET", K.alloc .. id, "state", "on_hold", "hold", by)
  call("HDEL", K.alloc .. id, "fw") -- what was said of its start holds no more
  list_held(id, a, by)
  -- One made by hand lives its TTL from where its place in line would have begun.
  if a.ttl and a.state == "delayed" then call("ZADD", K.manual, now + a.ttl, id) end
  event("held", id, a.tid, "name", a.name, "from", a.state, "by", by)
end

local function index_task(id, tid)
  if call("HSETNX", K.tasks, tid, id) == 0 then
    call("HSET", K.tasks, tid, call("HGET", K.tasks, tid) .. "," .. id)
  end
end

local function unindex_task(id, tid)
  local ids = call("HGET", K.tasks, tid)
  if ids == id then call("HDEL", K.tasks, tid); return end
  if not ids then return end
  local left = {}
  for other in string.gmatch(ids, "[^,]+") do if other ~= id then left[#left + 1] = other end end
  if #left == 0 then call("HDEL", K.tasks, tid) else call("HSET", K.tasks, tid, table.concat(left, ",")) end
end

-- The end of an allocation's record. Its outcome is remembered for two minutes for calls that are repeated.
local function forget(id, a, outcome)
  call("DEL", K.alloc .. id)
  call("SET", K.tomb .. id, outcome, "PX", 120000)
  if a.exp then call("ZREM", K.expires, id) end
  unindex_task(id, a.tid)
end

-- The end of a task that nobody will report: kept with its message until someone has written its result (see settle).
local function bury(id, a, outcome)
  call("HSET", K.alloc .. id, "state", "released", "outcome", outcome)
  call("ZADD", K.obits, now, id)
  if a.exp then call("ZREM", K.expires, id) end
  unindex_task(id, a.tid)
end

-- What the first event of an allocation says, once more: for one that comes back after its end, which followers have
-- forgotten.
local function asked(id, a)
  local v = call("HMGET", K.alloc .. id, "prio", "strat", "tenant")
  return "shape", a.shape, "priority", v[1], "strategy", v[2], "tenant", v[3] or "", "expires", a.exp or ""
end

-- Back into line under its old place; the next grant carries a new token.
local function requeue(id, a)
  call("HSET", K.alloc .. id, "state", "waiting", "tok", 0)
  call("HDEL", K.alloc .. id, "dev", "cores", "queue", "uuid", "g_ms", "s_ms", "worker", "nonce", "devs", "uuids")
  unfix_share(id, a)
  if a.exp then call("ZADD", K.expires, a.exp, id) end
  if a.ttl then call("ZADD", K.manual, now + a.ttl, id) end
  enqueue(id, a)
end

-- A grant that has not started is taken from its device and goes back into line.
local function take_back(id, a)
  withdraw(id, a)
  event("withdrawn", id, a.tid, "name", a.name, "device", a.dev, "token", a.tok)
  requeue(id, a)
end

-- A node that serves only allocations made by hand is offered for as long as they live: with the last one gone, its
-- lease ends (the next tick takes it offline).
local function close_idle_node(node)
  for _, device in ipairs(split(call("HGET", K.node .. node, "devs"))) do
    local dkey = node .. "/" .. device
    if call("HGET", K.dev .. dkey, "worker") ~= "" or call("SCARD", K.on .. dkey) > 0 then return end
  end
  call("ZADD", K.nodes, "XX", now, node)
end

-- Put a granted task's message into its device's mailbox, if it has one: a list of this very server that the broker's
-- worker reads. True if that was done; else (also where this user may not write there) the caller of the script publishes.
-- What does not begin and end as a message does (see envelope.py) would end the worker that reads it: whoever publishes
-- finds that out, and parks it.
local function deliver(d, token, message)
  if d.box == "" or string.byte(message, 1) ~= 44 or string.byte(message, -1) ~= 125 then return false end
  local reply = redis.pcall("LPUSH", d.box, d.head .. token .. message)
  return type(reply) == "number"
end
