-- Library: core ids. A node's map is a string with one character per core id, starting at id 0:
-- "1" free, "0" held, "-" not ours. Pure: touches no key.
-- often: pick_cores mark_cores count_free core_list

-- Pick n free cores: a free run inside an affinity range (cores near the device), else the first free run anywhere,
-- else single cores, near ones first. `near` is "0-15 32-47" or "". Returns ids as a list, or nil if fewer are free.
local function pick_cores(map, n, near)
  if n == 0 then return {} end
  local run, at = string.rep("1", n), nil
  for lo, hi in string.gmatch(near, "(%d+)%-(%d+)") do
    local i = string.find(string.sub(map, lo + 1, hi + 1), run, 1, true)
    if i then at = lo + i - 1; break end
  end
  if not at then
    local i = string.find(map, run, 1, true)
    if i then at = i - 1 end
  end
  local ids = {}
  if at then
    for k = 1, n do ids[k] = at + k - 1 end
    return ids
  end
  local seen = {}
  local function gather(lo, hi)
    local i = lo + 1
    while #ids < n do
      i = string.find(map, "1", i, true)
      if not i or i > hi + 1 then return end
      if not seen[i] then seen[i] = true; ids[#ids + 1] = i - 1 end
      i = i + 1
    end
  end
  for lo, hi in string.gmatch(near, "(%d+)%-(%d+)") do gather(tonumber(lo), tonumber(hi)) end
  gather(0, #map - 1)
  if #ids < n then return nil end
  table.sort(ids)
  return ids
end

-- The map with `ids` (sorted) set to `mark`. With `own`, a core that is no longer ours becomes "-" instead.
local function mark_cores(map, ids, mark, own)
  local out, from, n = {}, 1, 0
  local i = 1
  while i <= #ids do
    local j = i
    while ids[j + 1] == ids[j] + 1 do j = j + 1 end
    local lo, hi = ids[i] + 1, ids[j] + 1
    n = n + 1; out[n] = string.sub(map, from, lo - 1)
    n = n + 1
    if own then
      out[n] = (string.gsub(string.sub(own, lo, hi), "%d", mark))
    else
      out[n] = string.rep(mark, hi - lo + 1)
    end
    from = hi + 1
    i = j + 1
  end
  out[n + 1] = string.sub(map, from)
  return table.concat(out)
end

local function count_free(map)
  local _, n = string.gsub(map, "1", "")
  return n
end

local function core_list(text)
  local ids, n = {}, 0
  for id in string.gmatch(text or "", "%d+") do n = n + 1; ids[n] = tonumber(id) end
  return ids
end
