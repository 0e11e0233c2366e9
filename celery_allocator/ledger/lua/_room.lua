-- Library: where most is free. Reads: index, node. Writes nothing.

-- Free GPU memory, cores and RAM of the roomiest device that takes work (by memory, then cores); zeros if there is none.
local function roomiest()
  local best, score
  for _, ix in ipairs({ "sched", "idle" }) do
    local gpu = call("ZREVRANGEBYSCORE", K.index .. ix, "+inf", -CPU / 2, "WITHSCORES", "LIMIT", 0, 1)
    local cpu = call("ZREVRANGEBYSCORE", K.index .. ix, -CPU / 2, "-inf", "WITHSCORES", "LIMIT", 0, 1)
    local of_gpu, of_cpu = tonumber(gpu[2]), cpu[2] and cpu[2] + CPU
    if of_gpu and (not best or of_gpu > score) then best, score = gpu[1], of_gpu end
    if of_cpu and (not best or of_cpu > score) then best, score = cpu[1], of_cpu end
  end
  if not best then return 0, 0, 0 end
  local n = call("HMGET", K.node .. node_of(string.sub(best, 10)), "cfree", "rfree")
  return kind_of(best) == "gpu" and floor(score / NODES) or 0, tonumber(n[1]), tonumber(n[2])
end
