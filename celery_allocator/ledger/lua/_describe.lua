-- Library: one allocation as a flat list, read by the client in this order. Touches: alloc, waiting, runtimes, held (reads).
local DESCRIBED = { "tid", "name", "state", "shape", "prio", "strat", "c_ms", "g_ms", "s_ms", "exp", "eta", "tok", "dev",
  "uuid", "queue", "worker", "cores", "loss", "tenant", "hold", "size", "xrt" }

local function describe(id)
  local v = call("HMGET", K.alloc .. id, unpack(DESCRIBED))
  if not v[1] then return false end
  for i = 1, #DESCRIBED do v[i] = v[i] or "" end
  local n = #DESCRIBED
  v[n + 1], v[n + 2], v[n + 3], v[n + 4] = 0, "", "", id
  if v[3] == "waiting" then
    local rank = call("ZRANK", K.waiting, id)
    if rank then
      v[n + 1] = rank + 1
      v[n + 2] = estimate(v[2], rank + 1) or ""
    end
  end
  v[n + 3] = call("ZSCORE", K.manual, id) or ""
  return v
end
