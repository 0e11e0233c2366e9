-- Library: one allocation as a flat list, read by the client in this order. Touches: alloc, manual and all that the forecast reads.
local DESCRIBED = { "tid", "name", "state", "shape", "prio", "strat", "c_ms", "g_ms", "s_ms", "exp", "eta", "tok", "dev",
  "uuid", "queue", "worker", "cores", "loss", "tenant", "hold", "size", "xrt", "pace", "devs", "uuids", "asked", "oom" }

local function describe(id)
  local v = call("HMGET", K.alloc .. id, unpack(DESCRIBED))
  if not v[1] then return false end
  for i = 1, #DESCRIBED do v[i] = v[i] or "" end
  local n = #DESCRIBED
  v[n + 1], v[n + 2], v[n + 3], v[n + 4], v[n + 5] = 0, "", "", "", id
  if v[3] == "waiting" then
    local at, position = expected(forecast(), id, { shape = v[4], tenant = v[19], pace = v[23] })
    v[n + 1] = position
    if at then
      local p50, p90 = corrected(at - now)
      v[n + 2], v[n + 3] = now + p50, now + p90
    end
  end
  v[n + 4] = call("ZSCORE", K.manual, id) or ""
  return v
end
