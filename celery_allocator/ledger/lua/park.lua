-- A message cannot be read, so its task cannot run: keep both aside for an operator, and let the caller be told.
-- flags: allow-oom
-- uses: base events cores index line limits runtimes tenants dates claim breaker reserve place forecast pass
-- KEYS: prefix. ARGV from 5: id, token or "" (any), reason, publish ("1"|"0", as in release).
-- Reply: {"ok", grants} | {"gone"} | {"stale", live token}. Touches: alloc, obits, parked, delayed, events and all that
-- withdraw, dequeue and pass touch.
local id, token = ARGV[5], ARGV[6]
local a = load_alloc(id)
if not a or a.state == "released" then return { "gone" } end
if token ~= "" and token ~= a.tok then return { "stale", a.tok } end
local n
if a.state == "granted" or a.state == "running" then n = withdraw(id, a) else take_out(id, a) end
call("HSET", K.alloc .. id, "reason", ARGV[7])
call("ZADD", K.parked, NOW, id)
event("parked", id, a.tid, "name", a.name, "from", a.state, "reason", ARGV[7])
bury(id, a, "parked")
local grants = {}
if n then pass_node(n, grants) end
if ARGV[8] == "0" then leave_to_tick(grants) end
return { "ok", grants }
