-- A worker says that it runs a task: make that so again, unless it has become somebody else's or ended.
-- flags: allow-oom
-- uses: base events cores index line limits runtimes tenants dates claim
-- KEYS: prefix. ARGV from 5: id, token, node/device, cores held ("0,1"), worker, nonce, repeatable ("1"|"0"), started ms,
--   task id, task name, GPU MB, cores, RAM MB, priority, strategy, message (used where the record itself was lost), number
--   of the report (0: none), the run of the server that the worker last reported to, patient ("1": where others hold the
--   same and granting is paused, it asks again: they may have ended unheard, and have not reported yet), how many GPUs, what else it
--   asks for or "", all its devices ("n/gpu_0 n/gpu_1"), GPU MB as it asked for them (ARGV 15: as they were granted).
-- A record that is missing is made anew only where the server can have lost it: else the task has ended long ago.
-- What waits again, or was granted again and has not started, is taken back from there and runs on under its old token: so
-- a worker that was thought dead, or whose start the server forgot, keeps what nobody else has begun.
-- What has begun and cannot be claimed again goes back into line if it may be repeated; else it has ended as lost.
-- Until its worker has registered, a device that nobody serves is that worker's for a short while: else what it runs would be
-- held for good if it never comes so far.
-- Reply: {"ok"} | {"later", reason} | {"stale", reason}: then the worker has to stop it. Touches: alloc, tasks, meta, delayed,
-- expires, workers, worker, dev, obits and all that claim, withdraw, dequeue, requeue and bury touch.
local SHORT_LEASE = 10000
local id, token, dkey, worker = ARGV[5], tonumber(ARGV[6]), ARGV[7], ARGV[9]
local report = tonumber(ARGV[21])
if report > 0 and report <= tonumber(call("HGET", K.worker .. worker, "report") or 0) then
  return { "stale", "a later report has been made" }
end
local a = load_alloc(id)
if a and a.state == "running" then
  if tonumber(a.tok) ~= token or a.dev ~= dkey then return { "stale", "it runs on " .. a.dev .. " under token " .. a.tok } end
  call("HSET", K.alloc .. id, "worker", worker)
  return { "ok" }
end
if a and a.state == "released" then return { "stale", "it has ended" } end
local tomb = not a and call("GET", K.tomb .. id)
if tomb then return { "stale", "it has ended: " .. tomb } end

local server = call("HMGET", K.meta, "run", "rejoined", "paused")
if not a and server[1] == ARGV[22] and server[2] ~= server[1] then return { "stale", "it has ended" } end
local holder = call("HGET", K.dev .. dkey, "worker") or ""

local shape = shape_of(ARGV[15], ARGV[16], ARGV[17], "t", ARGV[24], ARGV[25])
local need = need_of(shape)
local on = split(ARGV[26])
if need.k > 1 then need.on = on end
local cores = core_list(ARGV[8])
local by = a and a.state == "on_hold" and call("HGET", K.alloc .. id, "hold")
if a and a.state == "granted" then
  withdraw(id, a)
elseif a then
  take_out(id, a)
end
local n = load_node(node_of(dkey))
local at = n and find_in(fleet_of(n), dkey)
local reason = holder ~= "" and holder ~= worker and dkey .. " is served by " .. holder or not at and dkey .. " is not known"
for _, other in ipairs(not reason and on or {}) do
  local their = find_in(fleet_of(n), other)
  if not their then reason = other .. " is not known"
  elseif fleet_of(n)[their + 2] < need.g then reason = "its GPU memory was given to others" end
end
if not reason and n.r < need.r then reason = "its RAM was given to others" end
for _, core in ipairs(cores) do
  if not reason and string.sub(n.map, core + 1, core + 1) == "0" then reason = "core " .. core .. " was given to others" end
end
local arr = arrival(tonumber(ARGV[12]))
local function record()
  call("HSET", K.alloc .. id, "tid", ARGV[13], "name", ARGV[14], "shape", shape, "prio", ARGV[18], "strat", ARGV[19],
    "msg", ARGV[20], "c_ms", ARGV[12], "arr", arr, "score", line_score(tonumber(ARGV[18]), arr))
  if need.s then
    call("HSET", K.alloc .. id, "asked", shape_of(ARGV[27], ARGV[16], ARGV[17], "t", ARGV[24], ARGV[25]))
  end
  index_task(id, ARGV[13])
end
if reason then
  local later = ARGV[23] == "1" and server[3]
  if later or (a and ARGV[11] == "1") then
    if a then
      requeue(id, a)
      a.state = "waiting"
      if by then hold(id, a, by) end -- as it was before
    end
  else
    if not a then record() end
    event("lost", id, ARGV[13], "name", ARGV[14], "device", dkey, "token", token, "again", 0)
    bury(id, a or { tid = ARGV[13] }, "lost")
  end
  return { later and "later" or "stale", reason }
end
if token > tonumber(call("HGET", K.meta, "seq") or 0) then call("HSET", K.meta, "seq", token) end
local _, _, d = claim(id, dkey, need, n, token, cores)
if not a then record() else fix_share(id, a, need) end
if need.on then call("HSET", K.alloc .. id, "devs", ARGV[26], "uuids", table.concat(d.uuids, " ")) end
charge(a and a.tenant or "", need, 1)
if affine(need) then warm_up(dkey, need.warm) end
if holder == "" then
  call("HSET", K.dev .. dkey, "worker", worker, "inc", RECLAIMING)
  call("HSET", K.worker .. worker, "inc", RECLAIMING, "dkey", dkey)
  call("ZADD", K.workers, "NX", now + SHORT_LEASE, worker)
end
call("HSET", K.alloc .. id, "state", "running", "tok", token, "dev", dkey, "cores", ARGV[8], "queue", d.queue, "uuid", d.uuid,
  "g_ms", ARGV[12], "s_ms", ARGV[12], "worker", worker, "nonce", ARGV[10], "late", ARGV[11])
if a and a.exp then call("ZREM", K.expires, id) end
if by then call("HDEL", K.alloc .. id, "hold") end
event("reclaimed", id, ARGV[13], "name", ARGV[14], "device", dkey, "token", token, "from", a and a.state or "nothing")
return { "ok" }
