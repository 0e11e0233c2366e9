-- Renew a worker's lease and its node's, and note what it has measured.
-- flags: allow-oom
-- uses: base
-- KEYS: prefix. ARGV from 5: worker, incarnation, lease ms, what it measured (JSON, or "": nothing new).
-- Reply: 1; 2: the server has changed since this worker last reported what it runs, so it is to report; 0: this
-- incarnation is not registered (any more). Touches: workers, nodes, worker, meta (reads).
local w = call("HMGET", K.worker .. ARGV[5], "inc", "dkey", "run", "doubt")
if w[1] ~= ARGV[6] then return 0 end
if w[4] then call("HDEL", K.worker .. ARGV[5], "doubt") end
if ARGV[8] ~= "" then call("HSET", K.worker .. ARGV[5], "use", ARGV[8], "use_at", NOW) end
local lease = now + tonumber(ARGV[7])
call("ZADD", K.workers, "XX", lease, ARGV[5])
call("ZADD", K.nodes, "GT", lease, node_of(w[2]))
return w[3] == call("HGET", K.meta, "run") and 1 or 2
