-- Maintenance, about once a second by whoever comes first.
-- flags: allow-oom
-- uses: base events cores index line limits runtimes tenants dates claim breaker reserve place forecast pass loss leases epoch
-- KEYS: prefix. ARGV from 5: lock ms (0: no lock), batch size, publish ("1": the caller publishes and writes results), ms
--   for which the caller could not reach the server ("": it cannot know, a command that has just begun), shortest pause ms, when the caller sent this by the server's clock
--   (as it knows it from the last reply) or "".
-- Wakes delayed tasks, ends expired ones, ends allocations by hand whose TTL is over, drops workers and nodes whose
-- lease is over, lists grants that have not started in time (to be published again under the same token: the gate
-- makes that safe) and ended tasks whose result nobody has written.
-- Reply: {} if the lock is taken, else {grants, obituaries, lost workers, now}. obituary: {id, task id, name, outcome, message,
--   losses, reason}
-- Touches: everything.
local LATE, GRACE = 2000, 10000
if ARGV[5] ~= "0" and not call("SET", K.tick, "1", "NX", "PX", ARGV[5]) then return {} end
local batch = tonumber(ARGV[6])
enter_run(tonumber(ARGV[9]))
-- Where the caller could not reach the server and nobody else ticked either, nobody could renew: that time does not count.
-- A call that was long on its way says the same: it was sent before its caller could have noticed.
local alive = tonumber(call("HGET", K.meta, "alive") or now)
local late = ARGV[10] ~= "" and now - ARGV[10] or 0
put_off(math.min(math.max(tonumber(ARGV[8]) or 0, late > LATE and late or 0), now - alive), alive)
call("HSET", K.meta, "alive", now)
-- Nobody has ticked for a while, and the caller does not know whether workers could: each is given one chance to be heard.
local in_doubt = ARGV[8] == "" and now - alive > LATE
local grants, lost, gone, freed, moved = {}, {}, {}, {}, false

-- Dead workers first, so that what they held is placed before what comes due now.
for _, worker in ipairs(call("ZRANGEBYSCORE", K.workers, "-inf", now, "LIMIT", 0, batch)) do
  local w = call("HMGET", K.worker .. worker, "dkey", "doubt")
  local dkey = w[1] or ""
  if in_doubt and w[1] and not w[2] then
    call("HSET", K.worker .. worker, "doubt", NOW)
    call("ZADD", K.workers, now + GRACE, worker)
    call("ZADD", K.nodes, "GT", now + GRACE, node_of(dkey))
  else
    drop_worker(worker, lost)
    event("worker_lost", worker, "", "device", dkey)
    gone[#gone + 1] = worker
    moved = true
  end
end
for _, node in ipairs(call("ZRANGEBYSCORE", K.nodes, "-inf", now, "LIMIT", 0, batch)) do
  for _, device in ipairs(split(call("HGET", K.node .. node, "devs"))) do
    local dkey = node .. "/" .. device
    local d = load_device(dkey)
    if d and d.live == "1" then
      d.live = "0"
      unwithhold(dkey, d)
      store_device(dkey, d)
    end
  end
  call("ZREM", K.nodes, node)
  count_node(node)
  event("node_lost", node, "")
end
for _, id in ipairs(call("ZRANGEBYSCORE", K.manual, "-inf", now, "LIMIT", 0, batch)) do
  local a = load_alloc(id)
  call("ZREM", K.manual, id)
  if a then
    if a.state == "granted" or a.state == "running" then withdraw(id, a) else take_out(id, a) end
    event("released", id, a.tid, "name", a.name, "device", a.dev or "", "token", a.tok, "outcome", "ttl")
    forget(id, a, "ttl")
    if a.dev then freed[#freed + 1] = node_of(a.dev) end
    moved = true
  end
end
for _, id in ipairs(call("ZRANGEBYSCORE", K.expires, "-inf", now, "LIMIT", 0, batch)) do
  local a = load_alloc(id)
  call("ZREM", K.expires, id)
  if a and a.state ~= "running" and a.state ~= "released" then
    if a.state == "granted" then withdraw(id, a); moved = true else take_out(id, a) end
    event("expired", id, a.tid, "name", a.name, "from", a.state)
    if a.ttl then
      call("ZREM", K.manual, id)
      forget(id, a, "expired")
    else
      bury(id, a, "expired")
    end
  end
end
if moved then pass_all(grants) end
pass_kept(grants)
pass_patient(batch, grants)
resume_if_reported(grants)
for _, node in ipairs(freed) do close_idle_node(node) end
for _, id in ipairs(call("ZRANGEBYSCORE", K.delayed, "-inf", now, "LIMIT", 0, batch)) do
  local a = load_alloc(id)
  call("ZREM", K.delayed, id)
  if a and a.state == "delayed" then
    call("HSET", K.alloc .. id, "state", "waiting")
    a.state = "waiting"
    if a.ttl then call("ZADD", K.manual, now + a.ttl, id) end
    event("waiting", id, a.tid, "name", a.name, "shape", a.shape)
    place_or_wait(id, a, grants)
  end
end
for _, name in ipairs(call("HKEYS", K.breakers)) do
  if is_closing(call("HGET", K.breakers, name)) and let_go(name, batch, grants) == 0 then call("HDEL", K.breakers, name) end
end
if call("EXISTS", K.waiting) == 1 then refresh() end
local obits = {}
if ARGV[7] == "1" then
  for _, id in ipairs(call("ZRANGEBYSCORE", K.granted, "-inf", now, "LIMIT", 0, batch)) do
    local v = call("HMGET", K.alloc .. id, "tok", "queue", "msg", "tid", "dev")
    local d = v[5] and load_device(v[5])
    if v[1] and v[4] and d then
      call("ZADD", K.granted, now + DEADLINE, id)
      event("republished", id, v[4], "token", v[1])
      if not deliver(d, v[1], v[3] or "") then grants[#grants + 1] = { id, tonumber(v[1]), v[2], v[3] or "" } end
    else -- damage, which verify tells of: not again in each tick
      call("ZADD", K.granted, now + DEADLINE, id)
    end
  end
  for _, id in ipairs(call("ZRANGE", K.obits, 0, batch - 1)) do
    local v = call("HMGET", K.alloc .. id, "tid", "name", "outcome", "msg", "loss", "reason")
    obits[#obits + 1] = { id, v[1] or "", v[2] or "", v[3] or "", v[4] or "", v[5] or "0", v[6] or "" }
  end
else
  leave_to_tick(grants)
end
return { grants, obits, gone, now }
