-- A worker begins to serve a device.
-- flags: allow-oom
-- uses: base events cores index line limits runtimes tenants dates claim breaker reserve place forecast pass loss epoch
-- KEYS: prefix. ARGV from 5: worker, incarnation, node/device, slots, queue, lease ms, pid, start time of the pid,
--   takeover (the incarnation whose process the caller knows to be gone, or ""), mailbox (a list, or ""), what goes before
--   token and message there, number of the report ("0": it does not tell what it runs), "1" if that is its last word (else
--   it is asked again, and does not count as having reported), then the ids of all that it runs.
-- What the ledger thinks runs there and the worker does not report has ended without the ledger hearing of it (see
-- unreported). A grant that has not started is published again at once: its message
-- may have gone with the server.
-- One worker per device: another one with a live lease is an error for the caller, unless its process is known to be gone.
-- Reply: {"ok", grants, lost ids} | {"busy", worker, incarnation, lease left ms, pid, start time, node} | {"unknown_device"}
-- Touches: workers, worker, dev, nodes, events and all that loss and pass touch.
local worker, inc, dkey, slots = ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8])
local d = load_device(dkey)
if not d then return { "unknown_device" } end
local lost, kept = {}, {}
for i = 18, #ARGV do kept[ARGV[i]] = true end
local function in_the_way(name, their_inc)
  if name == "" or their_inc == inc or their_inc == ARGV[13] or their_inc == RECLAIMING then return nil end
  local left = (tonumber(call("ZSCORE", K.workers, name) or 0)) - now
  if left <= 0 then return nil end
  local w = call("HMGET", K.worker .. name, "pid", "born", "dkey")
  return { "busy", name, their_inc, left, w[1] or "", w[2] or "", w[3] and node_of(w[3]) or "" }
end
local old = call("HMGET", K.worker .. worker, "inc", "dkey", "report")
local report = tonumber(ARGV[16])
-- Delivered late, after the caller had asked again: what it runs now is not what this says.
if report > 0 and report <= tonumber(old[3] or 0) then return { "ok", {}, {} } end
local namesake = old[1]
local busy = in_the_way(d.worker, d.inc) or in_the_way(worker, namesake or inc)
if busy then return busy end
if d.worker ~= "" and d.inc ~= inc then drop_worker(d.worker, lost, kept) end
if namesake and (namesake ~= inc or old[2] ~= dkey) then drop_worker(worker, lost, kept) end
call("HSET", K.worker .. worker, "inc", inc, "dkey", dkey, "pid", ARGV[11], "born", ARGV[12], "since", now,
  "run", ARGV[17] == "1" and call("HGET", K.meta, "run") or "", "report", report)
call("ZADD", K.workers, now + tonumber(ARGV[10]), worker)
call("ZADD", K.nodes, "GT", now + tonumber(ARGV[10]), node_of(dkey))
d = load_device(dkey)
if report > 0 then
  for _, id in ipairs(call("SMEMBERS", K.on .. dkey)) do
    if call("HGET", K.alloc .. id, "state") == "granted" then call("ZADD", K.granted, now, id) end
  end
  end_unreported(dkey, kept)
end
d = load_device(dkey)
-- What it holds counts against its slots.
local used = d.slots - d.sfree
d.worker, d.inc, d.open, d.queue, d.slots, d.sfree, d.live = worker, inc, "1", ARGV[9], slots, slots - used, "1"
d.box, d.head = ARGV[14], ARGV[15]
if d.whby and d.whby ~= inc then unwithhold(dkey, d) end
store_device(dkey, d)
count_node(node_of(dkey))
local n = call("HMGET", K.node .. node_of(dkey), "own", "ram")
set_class(dkey, d.mem .. ":" .. count_free(n[1]) .. ":" .. n[2])
event("worker", worker, "", "device", dkey, "slots", slots, "incarnation", inc, "state", d.st)
local grants = {}
resume_if_reported(grants)
pass_all(grants)
return { "ok", grants, lost }
