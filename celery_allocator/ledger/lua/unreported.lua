-- A worker tells all that it runs, before it claims what the ledger has forgotten: what that took the place of has ended.
-- flags: allow-oom
-- uses: base events cores index line limits runtimes tenants dates claim loss
-- KEYS: prefix. ARGV from 5: worker, incarnation, node/device, number of the report, then the ids of all that it runs.
-- What a predecessor ran is not meant: that is lost when this one registers. Nothing is granted for what is freed: registering, which follows, does that.
-- Reply: 1, or 0 where this is late (a later report was made) or the device is another worker's. Touches: on and all that
-- withdraw, forget and bury touch.
local worker, dkey, kept = ARGV[5], ARGV[7], {}
if tonumber(ARGV[8]) <= tonumber(call("HGET", K.worker .. worker, "report") or 0) then return 0 end
local d = call("HMGET", K.dev .. dkey, "worker", "inc")
if d[1] ~= worker or d[2] ~= ARGV[6] then return 0 end
for i = 9, #ARGV do kept[ARGV[i]] = true end
end_unreported(dkey, kept)
return 1
