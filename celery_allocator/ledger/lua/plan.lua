-- Where and when a task would start if it were submitted now.
-- flags: no-writes
-- uses: base events cores index line limits runtimes tenants dates claim breaker reserve place forecast pass never
-- KEYS: prefix. ARGV from 5: task name, GPU MB, cores, RAM MB, GPUs, priority, strategy, kind (t|m), tenant, size, how long it will run
--   at most in ms or "", what else it asks for or "".
-- Reply: {"now", node/device, now} | {"later", position, p50 ms or "", p90 ms or "", dimension of its tenant's cap that it waits for
--   or "", until when it would wait at most for a device where its affinity is loaded, though another has room (ms), or "", now} | {"never", dimension, largest} | {"never", dimension, cap, tenant}.
-- Touches: nothing (reads all that submit does).
local name, tenant, size, xrt = ARGV[5], ARGV[13], ARGV[14], ARGV[15] ~= "" and ARGV[15] or nil
local shape = shape_of(ARGV[6], ARGV[7], ARGV[8], ARGV[12], ARGV[9], ARGV[16])
local need = need_of(shape)
local cap, most = capped(tenant, need, use_of(""))
if cap then return { "never", cap, most, tenant } end
cap, most = never(need)
if cap then return { "never", cap, most } end

local arr = arrival(now, tonumber(call("HGET", K.meta, "arr") or nil))
local a = { id = "", name = name, shape = shape, tenant = tenant, size = size, xrt = xrt, score = line_score(tonumber(ARGV[10]), arr),
  pace = pace_of(run_ms(name, size, xrt)) }
need.id, need.tenant, need.score, need.run, need.lane = "", tenant, a.score, run_ms(name, size, xrt), lane_of(a)
local held_up = capped(tenant, need)
local behind = BACKFILL == "none" and somebody_before(tenant) or call("EXISTS", K.line .. lane_of(a)) == 1
local dkey = not held_up and not behind and place(need, ARGV[11])
if dkey then return { "now", dkey, now } end
local told = foresee(a)
local at, order = told and told.starts[""], told and told.order[""]
if need.abides then at = math.min(at or math.huge, need.abides) end
-- Where no device takes such a claim now (no worker, cordoned), nobody knows.
if told and not at and seat_for(need) then at = beyond(told, lane_of(a), call("ZCARD", K.line .. lane_of(a)), call("ZCARD", K.waiting)) end
local position = call("SCARD", K.queued) > 1 and order or call("ZCOUNT", K.waiting, "-inf", "(" .. string.format("%.17g", a.score)) + 1
local p50, p90
if at then p50, p90 = corrected(math.max(0, at - now)) end
return { "later", position, p50 and now + p50 or "", p90 and now + p90 or "", held_up or "", need.abides or "", now }
