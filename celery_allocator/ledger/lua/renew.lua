-- Extend the life of an allocation made by hand, and the lease of the node it is on.
-- flags: allow-oom
-- uses: base events
-- KEYS: prefix. ARGV from 5: id, TTL ms, token or "" (any).
-- Reply: {"ok"} | {"gone"} | {"stale", live token} | {"not_manual"}
-- Touches: alloc, manual, nodes, events.
local id, ttl, token = ARGV[5], tonumber(ARGV[6]), ARGV[7]
local v = call("HMGET", K.alloc .. id, "state", "tok", "dev", "ttl", "tid")
if not v[1] or v[1] == "released" then return { "gone" } end
if not v[4] then return { "not_manual" } end
if token ~= "" and v[2] ~= token then return { "stale", v[2] } end
if v[1] ~= "delayed" then call("ZADD", K.manual, now + ttl, id) end
call("HSET", K.alloc .. id, "ttl", ttl)
if v[3] then call("ZADD", K.nodes, "XX", "GT", now + ttl, node_of(v[3])) end
event("renewed", id, v[5], "ttl_ms", ttl)
return { "ok" }
