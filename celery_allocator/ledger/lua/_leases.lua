-- Library: time in which nobody could renew. Touches: workers, nodes, manual.

-- Put off by `by` ms the end of every lease and TTL that had not ended at `since`: the server was away in between.
local function put_off(by, since)
  if by <= 0 then return end
  for _, set in ipairs({ K.workers, K.nodes, K.manual }) do
    local found = call("ZRANGEBYSCORE", set, since, "+inf", "WITHSCORES")
    for i = 1, #found, 2 do call("ZADD", set, found[i + 1] + by, found[i]) end
  end
end
