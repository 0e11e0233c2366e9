-- Submit one allocation: grant it if a device fits now, else let it wait (or be delayed).
-- uses: base events journal cores index line limits runtimes tenants dates claim breaker reserve place forecast pass room never
-- KEYS: prefix. ARGV from 5: id, task id, task name, gpu MB, cores, RAM MB, priority, strategy, kind (t|m), message,
--   ETA ms or "", expiry ms or "", TTL ms (kind m), on_never (raise|wait), how many may wait or be delayed at most, tenant, note (see _journal) or "",
--   size, how long it will run at most in ms or "", how many GPUs, what else it asks for (as a shape has it) or "".
-- Reply: {"granted", [token, device, cores, queue, uuid, free GPU MB, free cores, free RAM, delivered 0|1, all devices, all uuids (of several, else ""), GPU MB of each], now}
--   | {"waiting", [position, estimated start ms or "" (p50, p90), largest free GPU MB, cores, RAM], now} | {"delayed", now} | {"on_hold", now}: set aside by a breaker
--   | {"never", dimension, largest} | {"full", how many wait} | {"known", state} when the id was submitted before (a repeated call changes nothing).
-- What stands in [] is one text in JSON: a client reads that in a fraction of the time that so many values of the protocol take.
-- Touches: alloc, tasks, meta, expires, delayed, classes, events, journal and all that claim and enqueue touch.
local id, tid, name = ARGV[5], ARGV[6], ARGV[7]
local shape = shape_of(ARGV[8], ARGV[9], ARGV[10], ARGV[13], ARGV[24], ARGV[25])
local need = need_of(shape)
local priority, strategy, eta, expires, ttl = tonumber(ARGV[11]), ARGV[12], ARGV[15], ARGV[16], ARGV[17]
local tenant, note, size, xrt = ARGV[20], read_note(ARGV[21]), ARGV[22], ARGV[23]
local no = refused(note)
if no then return no end

if call("EXISTS", K.alloc .. id, K.tomb .. id) > 0 then
  return { "known", call("HGET", K.alloc .. id, "state") or call("GET", K.tomb .. id) }
end

-- What its tenant may never hold: its cap is below it.
local function forbidden()
  local dimension, cap = capped(tenant, need, use_of(""))
  if dimension then return { "never", dimension, cap, tenant } end
end

-- What is recorded whatever becomes of it, besides its fields.
local function index()
  if expires ~= "" then call("ZADD", K.expires, expires, id) end
  index_task(id, tid)
end

local last = call("HMGET", K.meta, "seq", "arr")
local arr = arrival(now, tonumber(last[2] or nil))
local a = { tid = tid, name = name, shape = shape, ttl = ttl, tenant = tenant, size = size, xrt = xrt ~= "" and xrt or nil,
  strat = strategy, score = line_score(priority, arr) }
a.pace = pace_of(run_ms(name, size, a.xrt))

local function fields()
  local out = { "tid", tid, "name", name, "shape", shape, "prio", ARGV[11], "strat", strategy, "msg", ARGV[14],
    "c_ms", NOW, "arr", arr, "score", a.score }
  if a.pace ~= "" then out[#out + 1] = "pace"; out[#out + 1] = a.pace end
  if size ~= "" then out[#out + 1] = "size"; out[#out + 1] = size end
  if a.xrt then out[#out + 1] = "xrt"; out[#out + 1] = xrt end
  if expires ~= "" then out[#out + 1] = "exp"; out[#out + 1] = expires end
  if need.kind == "m" then out[#out + 1] = "ttl"; out[#out + 1] = ttl end
  if tenant ~= "" then out[#out + 1] = "tenant"; out[#out + 1] = tenant end
  return unpack(out)
end

-- The first event of an allocation says what was asked for.
local FIRST = { "new", 1, "shape", shape, "priority", ARGV[11], "strategy", strategy, "tenant", tenant, "expires", expires }

local delayed = eta ~= "" and tonumber(eta) > now
a.first = FIRST
local dkey, node
if not delayed then dkey, node = find_room(id, a, need) end
local aside = dkey and not admits(a, need.kind)
if aside then dkey = nil end

if not dkey and not aside and ARGV[18] == "raise" then
  local dimension, largest = never(need)
  if dimension then return { "never", dimension, largest } end
  local no = forbidden()
  if no then return no end
end

-- What would wait must find room in line. A retry of a task that is known does not: it stands in for what it replaces.
if not dkey and call("HEXISTS", K.tasks, tid) == 0 then
  local count = call("ZCARD", K.waiting) + call("ZCARD", K.delayed) + call("ZCARD", K.onhold)
  if count >= tonumber(ARGV[19]) then return { "full", count } end
end

local seq = (tonumber(last[1] or nil) or 0) + 1
call("HSET", K.meta, "seq", seq, "arr", arr)
local learn = strategy_of(strategy).learn
if learn then learn(need) end

if delayed then
  call("HSET", K.alloc .. id, "state", "delayed", "tok", 0, "eta", eta, fields())
  index()
  call("ZADD", K.delayed, eta, id)
  event("delayed", id, tid, "name", name, "eta", eta, unpack(FIRST))
  journal(note, { "allocation:" .. id }, { state = "none" }, { state = "delayed" })
  return answered(note, { "delayed", now })
end

if dkey then
  local token, cores, d = claim(id, dkey, need, node, seq)
  index()
  spend(a)
  passed(id)
  record_grant(id, a, dkey, need, token, cores, d, fields())
  journal(note, { "allocation:" .. id }, { state = "none" }, { state = need.kind == "m" and "running" or "granted", device = dkey })
  local delivered = need.kind == "t" and deliver(d, token, ARGV[14])
  local told = cjson.encode({ string.format("%.0f", token), dkey, cores, d.queue, d.uuid, d.free, node.c, node.r, delivered and 1 or 0,
    need.on and table.concat(need.on, " ") or "", d.uuids and table.concat(d.uuids, " ") or "", need.g })
  return answered(note, { "granted", told, now })
end

call("HSET", K.alloc .. id, "state", "waiting", "tok", 0, fields())
index()
if need.kind == "m" then call("ZADD", K.manual, now + ttl, id) end
enqueue(id, a)
have_patience(need)
local p50, p90, position = promise(id, a)
event("waiting", id, tid, "name", name, "position", position, "estimate", p50 or "", "estimate_p90", p90 or "", unpack(FIRST))
journal(note, { "allocation:" .. id }, { state = "none" }, { state = "waiting" })
if aside then
  hold(id, load_alloc(id), "breaker")
  return answered(note, { "on_hold", now })
end
local gpu_free, cores_free, ram_free = roomiest()
return answered(note, { "waiting", cjson.encode({ position, p50 or "", p90 or "", gpu_free, cores_free, ram_free }), now })
