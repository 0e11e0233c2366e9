-- Rebuild everything that is counted from the allocations' records, and what nodes and devices have.
-- flags: allow-oom
-- uses: base events journal cores index line limits runtimes tenants dates claim breaker reserve place forecast pass audit
-- KEYS: prefix. ARGV from 5: ids of all records there are (found by SCAN).
-- Where two records claim the same core or more than there is, the older grant stays; the other one goes back into line if it
-- has not started. If it runs it is counted all the same: that is the truth, and verify goes on saying so.
-- Reply: {what could not be mended, grants}. Touches: everything but the allocations' own fields.
local SHORT_LEASE = 10000
local ids, left = every_id(5), {}
local function leave(...) left[#left + 1] = table.concat({ ... }) end

-- 0. The records, while nothing has been changed: what is not whole is left alone.
local held, known, last = {}, {}, tonumber(call("HGET", K.meta, "seq") or 0)
local function number(text) return text == nil or text == false or tonumber(text) ~= nil end
for _, id in ipairs(ids) do
  local a = load_alloc(id)
  local whole = a and a.shape and need_of(a.shape) and a.tid and tonumber(a.tok) and tonumber(a.score) and number(a.eta)
    and number(a.ttl) and number(a.exp) and (a.state ~= "delayed" or a.eta)
  if whole then
    known[id] = a
    last = math.max(last, tonumber(a.tok))
    if a.state == "granted" or a.state == "running" then held[#held + 1] = id end
  elseif call("EXISTS", K.alloc .. id) == 1 then
    leave("the record of ", id, " is not whole: it is left alone")
  end
end

-- 1. Forget what is counted. What cannot be recomputed is kept: when a grant is due to be published, a lease by hand to end.
local due, ends, buried = {}, {}, {}
for _, id in ipairs(ids) do
  due[id], ends[id] = call("ZSCORE", K.granted, id), call("ZSCORE", K.manual, id)
  buried[id] = call("ZSCORE", K.obits, id)
  -- Also the line of a shape that is listed no more.
  local v = call("HMGET", K.alloc .. id, "shape", "name", "pace", "tenant")
  if v[1] then
    local lane = lane_of({ shape = v[1], pace = v[3] or "", tenant = v[4] or "" })
    call("DEL", K.line .. lane, K.patient .. lane)
  end
  if v[4] then call("DEL", K.turn .. v[4]) end
  if v[2] then call("DEL", K.aside .. v[2]) end
end
local queued = call("SMEMBERS", K.queued)
queued[#queued + 1] = ""
for _, tenant in ipairs(queued) do
  for _, lane in ipairs(call("ZRANGE", K.turn .. tenant, 0, -1)) do call("DEL", K.line .. lane, K.patient .. lane) end
  call("DEL", K.turn .. tenant)
end
for _, name in ipairs(call("HKEYS", K.breakers)) do
  call("DEL", K.aside .. name)
  -- One that cannot be read closes: what it set aside goes on with the ticks.
  if not tonumber(call("HGET", K.breakers, name)) then call("HSET", K.breakers, name, CLOSING) end
end
call("DEL", K.held, K.granted, K.waiting, K.delayed, K.onhold, K.expires, K.manual, K.shapes, K.tasks, K.classes, K.obits,
  K.queued, K.reserved, K.used, K.patience, K.index .. "sched", K.index .. "idle")
for _, ix in ipairs({ "sched", "idle" }) do
  for _, kind in ipairs({ "gpu", "cpu" }) do
    for b = 0, BUCKETS do call("DEL", K.order .. ix .. ":" .. kind .. ":" .. b) end
  end
end

-- 2. Nodes and devices as if nothing were held. A core that is held and no longer the node's stays "0" by its allocation.
local nodes = {}
for _, node in ipairs(call("SMEMBERS", K.known)) do
  local v = call("HMGET", K.node .. node, "own", "ram", "devs", "wh")
  if v[1] and v[2] and v[3] then
    local n = { map = v[1], r = tonumber(v[2]), devs = {}, list = {}, own = v[1], wh = tonumber(v[4] or nil) or 0 }
    for _, device in ipairs(split(v[3])) do
      local dkey = node .. "/" .. device
      local d = call("HMGET", K.dev .. dkey, "ord", "mem", "slots", "class", "worker", "st", "live", "open",
        "inc", "wh")
      call("DEL", K.on .. dkey)
      if d[1] and d[2] and d[3] then
        -- A worker without a record or a lease gets a short one: it is heard, or dropped with what it holds.
        if d[5] and d[5] ~= "" then
          call("HSETNX", K.worker .. d[5], "inc", d[9] or "")
          call("HSETNX", K.worker .. d[5], "dkey", dkey)
          call("ZADD", K.workers, "NX", now + SHORT_LEASE, d[5])
        end
        n.devs[dkey] = { ord = d[1], free = tonumber(d[2]), sfree = tonumber(d[3]), worker = d[5], st = d[6], live = d[7],
          open = d[8], wh = tonumber(d[10] or nil) or 0 }
        n.list[#n.list + 1] = dkey
        if d[4] and d[4] ~= "" then call("HINCRBY", K.classes, d[4], 1) end
      else
        leave("the record of device ", dkey, " is not whole: its worker has to register again")
      end
    end
    nodes[node] = n
  else
    leave("the record of node ", node, " is not whole: its workers have to register again")
  end
end

-- 3. What holds, by the age of its grant.
call("HSET", K.meta, "seq", last)
table.sort(held, function(x, y) return tonumber(known[x].tok) < tonumber(known[y].tok) end)

-- on: the devices that it claims, in d the first of them.
local function fits(n, on, need, cores)
  local d = n.devs[on[1]]
  for _, dkey in ipairs(on) do if n.devs[dkey].free < need.g then return false end end
  if n.r < need.r or (need.kind == "t" and d.sfree < 1) then return false end
  for _, core in ipairs(cores) do
    -- A core that its node gave up meanwhile ("-") is still this one's.
    if string.sub(n.map, core + 1, core + 1) == "0" then return false end
  end
  return true
end

for _, id in ipairs(held) do
  local a = known[id]
  local need, cores = need_of(a.shape), core_list(a.cores)
  local n = a.dev and nodes[node_of(a.dev) or ""]
  local on = split(a.devs or a.dev)
  local d = n and n.devs[a.dev]
  for _, dkey in ipairs(on) do if d and not n.devs[dkey] then d = nil end end
  if a.state == "granted" and not (d and fits(n, on, need, cores)) then
    a.state = "waiting"
    call("HSET", K.alloc .. id, "state", "waiting", "tok", 0)
    call("HDEL", K.alloc .. id, "dev", "cores", "queue", "uuid", "g_ms", "s_ms", "worker", "nonce", "devs", "uuids")
    unfix_share(id, a)
  elseif not d then
    leave(id, " runs on ", a.dev or "nothing", ", which is not known: it ends, and its result says so")
    a.state = "released"
    buried[id] = now
    call("HSET", K.alloc .. id, "state", "released", "outcome", "unreported")
  else
    if not fits(n, on, need, cores) then leave(id, " runs on ", a.dev, " beside others that hold the same") end
    n.r = n.r - need.r
    for _, dkey in ipairs(on) do
      n.devs[dkey].free = n.devs[dkey].free - need.g
      call("SADD", K.on .. dkey, id)
    end
    if need.kind == "t" then d.sfree = d.sfree - 1 end
    if #n.map <= (cores[#cores] or -1) then n.map = n.map .. string.rep("-", cores[#cores] + 1 - #n.map) end
    n.map = mark_cores(n.map, cores, "0")
    call("ZADD", K.held, call("HGET", K.alloc .. id, "g_ms") or NOW, id)
    if a.state == "granted" then call("ZADD", K.granted, due[id] or NOW, id) end
  end
end
for id, a in pairs(known) do
  if a.state == "waiting" then enqueue(id, a) end
  if a.state == "delayed" then call("ZADD", K.delayed, a.eta, id) end
  if a.state == "on_hold" then list_held(id, a, call("HGET", K.alloc .. id, "hold")) end
  if a.state == "released" then
    if buried[id] or not call("ZSCORE", K.parked, id) then call("ZADD", K.obits, buried[id] or NOW, id) end
  else
    index_task(id, a.tid)
    if a.ttl and a.state ~= "delayed" then call("ZADD", K.manual, ends[id] or now + a.ttl, id) end
    if a.exp and a.state ~= "running" then call("ZADD", K.expires, a.exp, id) end
  end
end
for _, id in ipairs(call("ZRANGE", K.parked, 0, -1)) do
  if not known[id] then call("ZREM", K.parked, id) end
end

-- 4. Store the nodes, and put every device where it belongs.
for node, n in pairs(nodes) do
  table.sort(n.list, function(x, y) return n.devs[x].ord < n.devs[y].ord end)
  local fleet, cfree, together = {}, count_free(n.map), 0
  -- What is withheld is no claim: a grant stands, whatever others use. What cannot be read of it is nothing.
  n.r = n.r - n.wh
  if n.wh == 0 then call("HDEL", K.node .. node, "wh", "whof") end
  for dkey, d in pairs(n.devs) do
    d.free = d.free - d.wh
    if d.wh == 0 then call("HDEL", K.dev .. dkey, "wh", "whof") end
  end
  for dkey, d in pairs(n.devs) do if kind_of(dkey) == "gpu" then together = together + math.max(0, d.free) end end
  for _, dkey in ipairs(n.list) do
    local d = n.devs[dkey]
    local member, mode, kind = d.ord .. "|" .. dkey, mode_of(d), kind_of(dkey)
    local ix = index_of(mode, d.sfree)
    for _, value in ipairs({ member, mode, d.free, d.sfree }) do fleet[#fleet + 1] = value end
    if ix ~= "" then
      call("ZADD", K.index .. ix, score_of(kind, d.free, together, cfree), member)
      call("ZADD", K.order .. ix .. ":" .. kind .. ":" .. bucket(kind, d.free), tonumber(d.ord), member)
    end
  end
  if #n.map > #n.own then call("HSET", K.node .. node, "own", n.own .. string.rep("-", #n.map - #n.own)) end
  call("HSET", K.node .. node, "map", n.map, "cfree", cfree, "rfree", n.r, "fleet", cmsgpack.pack(fleet))
  store_capacities(node)
end
-- 5. What tenants use of what there is.
call("HDEL", K.meta, "all_g", "all_c", "all_r")
for _, node in ipairs(call("SMEMBERS", K.known)) do
  call("HDEL", K.node .. node, "counted")
  count_node(node)
end
for _, id in ipairs(held) do
  local a = known[id]
  if a.state == "granted" or a.state == "running" then charge(a.tenant, need_of(a.shape), 1) end
end
-- 6. What cannot be read of the journal is forgotten, and what stands before that cannot be undone any more.
for _, number in ipairs(damaged_entries()) do drop_entry(number, true) end
event("repaired", "", "", "left", #left)
local grants = {}
pass_all(grants)
return { left, grants }
