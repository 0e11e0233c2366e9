-- Library: could it ever be granted? Touches: classes, known, node, dev (reads).

-- Of several GPUs of one node: the most that any known node has of those that are large enough; nil if one has as many as
-- that.
local function too_many(need)
  local most = 0
  for _, node in ipairs(call("SMEMBERS", K.known)) do
    local count = 0
    for _, device in ipairs(split(call("HGET", K.node .. node, "devs"))) do
      local g, c, r = string.match(call("HGET", K.dev .. node .. "/" .. device, "class") or "", "(%d+):(%d+):(%d+)")
      if g and tonumber(g) >= need.g and tonumber(c) >= need.c and tonumber(r) >= need.r then count = count + 1 end
    end
    if count >= need.k then return nil end
    most = math.max(most, count)
  end
  return most
end

-- Could any known device ever hold it? The dimension in which none is large enough, and the most that there is; nil if one
-- is, or none is known. Capacity classes are few, whatever the number of devices.
local function never(need)
  local most, any = { g = 0, c = 0, r = 0 }, false
  for _, class in ipairs(call("HKEYS", K.classes)) do
    local g, c, r = string.match(class, "(%d+):(%d+):(%d+)")
    g, c, r = tonumber(g), tonumber(c), tonumber(r)
    any = true
    if g >= need.g and c >= need.c and r >= need.r then
      local count = need.k > 1 and too_many(need)
      if count then return "gpu_count", count end
      return nil
    end
    if g > most.g then most.g = g end
    -- The largest number of cores, and of RAM, among those that pass the dimensions before it.
    if g >= need.g and c > most.c then most.c = c end
    if g >= need.g and c >= need.c and r > most.r then most.r = r end
  end
  if not any then return nil end
  if most.g < need.g then return "gpu_memory_mb", most.g end
  if most.c < need.c then return "cpu_cores", most.c end
  return "ram_mb", most.r
end
