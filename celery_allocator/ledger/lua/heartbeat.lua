-- Renew a worker's lease and its node's.
-- uses: base
-- KEYS: prefix. ARGV from 5: worker, incarnation, lease ms.
-- Reply: 1, or 0 if this incarnation is not registered (any more). Touches: workers, nodes, worker (read).
local w = call("HMGET", K.worker .. ARGV[5], "inc", "dkey")
if w[1] ~= ARGV[6] then return 0 end
local lease = now + tonumber(ARGV[7])
call("ZADD", K.workers, "XX", lease, ARGV[5])
call("ZADD", K.nodes, "GT", lease, node_of(w[2]))
return 1
