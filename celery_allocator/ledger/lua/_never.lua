-- Library: could it ever be granted? Touches: classes, known, node, dev (reads).

-- Of several GPUs of one node: the most that any known node has of those that are large enough and may be taken; nil if one
-- has as many as that. Of equally large ones where a share is asked for.
local function too_many(need)
  local most = 0
  for _, node in ipairs(call("SMEMBERS", K.known)) do
    local count, sizes = 0, {}
    for _, device in ipairs(split(call("HGET", K.node .. node, "devs"))) do
      local dkey = node .. "/" .. device
      local class = call("HGET", K.dev .. dkey, "class") or ""
      if class_holds(class, need) and matches(dkey, need) then
        local size = need.s and string.match(class, "^%d+") or ""
        sizes[size] = (sizes[size] or 0) + 1
        count = math.max(count, sizes[size])
      end
    end
    if count >= need.k then return nil end
    most = math.max(most, count)
  end
  return most
end

-- Where what it may go to says no: the first of its limits that no known device meets (of those that meet the ones before it),
-- and what there is. Else nil, and the capacity classes of those that meet them all (all classes, where it has no limits).
local function out_of_bounds(need)
  local limits, there = need.limits, {}
  if not limits then return nil, call("HKEYS", K.classes) end
  each_device(function(dkey)
    if (call("HGET", K.dev .. dkey, "class") or "") ~= "" and (kind_of(dkey) == "gpu") == need.gpu then there[#there + 1] = dkey end
  end)
  local labels, wanted, names = limits.labels or {}, {}, {}
  for name in pairs(labels) do names[#names + 1] = name end
  table.sort(names)
  if limits.node then wanted[1] = { "node", { node = limits.node }, function(dkey) return node_of(dkey) end } end
  if limits.model then
    wanted[#wanted + 1] = { "gpu_model", { model = limits.model }, function(dkey) return call("HGET", K.dev .. dkey, "model") or "" end }
  end
  for _, name in ipairs(names) do
    wanted[#wanted + 1] = { "label " .. name, { labels = { [name] = labels[name] } }, function(dkey) return labels_of(node_of(dkey))[name] end }
  end
  for _, limit in ipairs(wanted) do
    local left, told, seen = {}, {}, {}
    for _, dkey in ipairs(there) do
      local value = limit[3](dkey)
      if value and not seen[value] then
        seen[value] = true
        told[#told + 1] = value
      end
      if matches(dkey, { limits = limit[2], k = 1 }) then left[#left + 1] = dkey end
    end
    if #there > 0 and #left == 0 then
      table.sort(told)
      return limit[1], table.concat(told, ", ")
    end
    there = left
  end
  if #there == 0 then return nil, call("HKEYS", K.classes) end
  for i, dkey in ipairs(there) do there[i] = call("HGET", K.dev .. dkey, "class") end
  return nil, there
end

-- Could any known device ever hold it? The dimension in which none is large enough (or the first of its limits that none meets),
-- and the most that there is; nil if one is, or none is known. Capacity classes are few, whatever the number of devices.
local function never(need)
  local limit, classes = out_of_bounds(need) -- classes: what there is, where there is a limit
  if limit then return limit, classes end
  -- A share is one of a GPU, whatever its size.
  local most, any, least = { g = 0, c = 0, r = 0 }, false, need.s and math.max(1, need.g) or need.g
  for _, class in ipairs(classes) do
    local g, c, r = string.match(class, "(%d+):(%d+):(%d+)")
    if g then
      g, c, r = tonumber(g), tonumber(c), tonumber(r)
      any = true
      if class_holds(class, need) then
        local count = need.k > 1 and too_many(need)
        if count then return "gpu_count", count end
        return nil
      end
      if g > most.g then most.g = g end
      -- The largest number of cores, and of RAM, among those that pass the dimensions before it.
      if g >= least and c > most.c then most.c = c end
      if g >= least and c >= need.c and r > most.r then most.r = r end
    end
  end
  if not any then return nil end
  if need.s and most.g == 0 then return "gpu", 0 end
  if most.g < least then return "gpu_memory_mb", most.g end
  if most.c < need.c then return "cpu_cores", most.c end
  return "ram_mb", most.r
end
