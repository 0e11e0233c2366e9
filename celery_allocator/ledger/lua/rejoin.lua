-- A worker is about to report what it runs.
-- flags: allow-oom
-- uses: base events index epoch
-- KEYS: prefix. ARGV from 5: worker, run id of the server that it last reported to ("": it is new), lease ms.
-- The report gets a number, so that parts of it which a slow network delivers late have no effect (see reclaim and
-- register_worker). If the ledger does not know the worker because the server has lost what it was told (it is another run of the server, or there is
-- no node at all), others may not have been heard either: granting pauses for a lease, in which every live worker
-- reports. Once for each run of the server.
-- Reply: {number, 1 if granting was paused, else 0}. Touches: worker, known (reads), meta, events and all that pause touches.
local number = call("HINCRBY", K.meta, "seq", 1)
if ARGV[6] == "" or call("EXISTS", K.worker .. ARGV[5]) == 1 then return { number, 0 } end
local v = call("HMGET", K.meta, "run", "paused", "rejoined")
if v[2] or v[3] == v[1] or (v[1] == ARGV[6] and call("SCARD", K.known) > 0) then return { number, 0 } end
call("HSET", K.meta, "rejoined", v[1] or "")
pause(now + tonumber(ARGV[7]))
return { number, 1 }
