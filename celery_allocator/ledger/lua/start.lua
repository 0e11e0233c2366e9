-- A worker is about to run a granted task: the gate. Succeeds once per grant.
-- flags: allow-oom
-- uses: base events index line limits runtimes tenants dates forecast describe
-- KEYS: prefix. ARGV from 5: id, token, worker, incarnation, nonce (one per delivery), repeatable ("1"|"0").
-- Reply: {"ok", <described allocation>} | {"stale", reason}. The same nonce again (the reply was lost) is "ok" again.
-- A stale delivery is counted by its reason. Touches: alloc, granted, expires, dev, dates, events, rejected.
local function stale(reason, told)
  call("HINCRBY", K.rejected, reason, 1)
  return { "stale", told or reason }
end
local id, token, worker, inc, nonce = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local v = call("HMGET", K.alloc .. id, "state", "tok", "dev", "nonce", "tid", "name", "exp")
if not v[1] or v[1] == "released" then return stale("ended") end
if v[1] ~= "granted" and v[1] ~= "running" then return stale("not_granted", v[1]) end
if v[2] ~= token then return stale("superseded", "token " .. token .. " is not the live one (" .. v[2] .. ")") end
if v[1] == "running" then
  if v[4] == nonce then return { "ok", describe(id) } end
  return stale("running", "already running")
end
if call("HGET", K.dev .. v[3], "inc") ~= inc then return stale("not_serving", "worker " .. worker .. " no longer serves " .. v[3]) end
call("HSET", K.alloc .. id, "state", "running", "s_ms", now, "worker", worker, "nonce", nonce, "late", ARGV[10])
call("ZREM", K.granted, id)
if v[7] then call("ZREM", K.expires, id) end
score_date(id)
event("started", id, v[5], "name", v[6], "device", v[3], "token", token, "worker", worker)
return { "ok", describe(id) }
