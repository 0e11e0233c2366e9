-- A worker stops serving its device. Unstarted grants go back into line; what still runs is lost with it.
-- flags: allow-oom
-- uses: base events cores index line limits runtimes tenants dates claim breaker reserve place forecast pass loss
-- KEYS: prefix. ARGV from 5: worker, incarnation, closing ("1": it runs its tasks to their end first, so only new
--   grants stop and unstarted ones are withdrawn; "0": it is leaving now).
-- Reply: {grants, lost ids}, or {} if this incarnation is not registered.
-- Touches: workers, worker, dev, events and all that loss and pass touch.
local worker, inc = ARGV[5], ARGV[6]
local w = call("HMGET", K.worker .. worker, "inc", "dkey")
if w[1] ~= inc then return {} end
local lost, grants = {}, {}
if ARGV[7] == "1" then
  -- Unless another one serves it by now.
  if call("HGET", K.dev .. w[2], "worker") == worker then
    for _, id in ipairs(call("SMEMBERS", K.on .. w[2])) do
      local a = load_alloc(id)
      if a and a.state == "granted" and a.dev == w[2] then
        take_back(id, a)
      end
    end
    local d = load_device(w[2])
    d.open = "0"
    store_device(w[2], d)
  end
  event("closing", worker, "", "device", w[2])
else
  drop_worker(worker, lost)
  event("left", worker, "", "device", w[2])
end
pass_all(grants)
return { grants, lost }
