-- Library: where most is free. Reads: index, node. Writes nothing.

-- Free GPU memory, cores and RAM of the roomiest device that takes work (by memory, then cores); zeros if there is none.
local function roomiest()
  local best, score
  for _, ix in ipairs({ "sched:gpu", "idle:gpu", "sched:cpu", "idle:cpu" }) do
    local top = call("ZRANGE", K.index .. ix, -1, -1, "WITHSCORES")
    if top[1] and (not best or tonumber(top[2]) > score) then best, score = top[1], tonumber(top[2]) end
  end
  if not best then return 0, 0, 0 end
  local n = call("HMGET", K.node .. node_of(string.sub(best, 10)), "cfree", "rfree")
  return floor(score / CORES), tonumber(n[1]), tonumber(n[2])
end
