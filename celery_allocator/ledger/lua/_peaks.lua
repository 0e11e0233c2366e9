-- Library: what tasks turned out to use. Touches: peaks.
-- Per task name (and size) for GPU memory of one device (MB), RAM (MB) and cores kept busy (thousandths): what was declared
-- last, the most that was seen, and a sketch as _runtimes has it. The most is that of two windows of PEAK_WINDOW runs, the one
-- at hand and the one before, so that an outlier is believed for a while and not for good. Packed: { when told last (s), then
-- three times declared, most of this window, most of the one before, packed sketch }.
local PEAK_DECAY = 0.005 -- weight of the newest, once there are 200: more than of run times, for the 99th of a hundred
local PEAK_WINDOW = 500
local PEAK_FIELDS = 2000 -- names and sizes that are remembered

-- What cannot be read is nothing: it is learned anew.
local function peaks_in(packed)
  local ok, p = pcall(cmsgpack.unpack, packed or "")
  local whole = ok and type(p) == "table" and #p == 13
  for i = 1, whole and 13 or 0 do
    if i > 1 and i % 4 == 1 then whole = whole and type(p[i]) == "string"
    else whole = whole and type(p[i]) == "number" and p[i] >= 0 end
  end
  return whole and p or { 0, 0, 0, 0, "", 0, 0, 0, "", 0, 0, 0, "" }
end

-- Room for one more: of a few that chance names, the one that was told of longest ago goes.
local function forget_peaks()
  local oldest, since
  local some = call("HRANDFIELD", K.peaks, 8, "WITHVALUES")
  for i = 1, #some, 2 do
    local at = peaks_in(some[i + 1])[1]
    if not since or at < since then oldest, since = some[i], at end
  end
  if oldest then call("HDEL", K.peaks, oldest) end
end

-- told and declared: GPU MB, RAM MB, thousandths of a core; told: nil for what was not measured.
local function learn_peak(field, told, declared)
  local found = call("HGET", K.peaks, field)
  if not found and call("HLEN", K.peaks) >= PEAK_FIELDS then forget_peaks() end
  local p = peaks_in(found)
  p[1] = floor(now / 1000)
  for i = 1, 3 do
    local at, value = 4 * i - 2, told[i]
    p[at] = declared[i] or p[at] -- nil: as it was
    if value then
      local s = sketch(p[at + 3])
      if s[1] % PEAK_WINDOW == 0 then p[at + 1], p[at + 2] = 0, p[at + 1] end
      p[at + 1] = math.max(p[at + 1], value)
      p[at + 3] = cmsgpack.pack(absorb(s, value, PEAK_DECAY))
    end
  end
  call("HSET", K.peaks, field, cmsgpack.pack(p))
end

-- What a worker told of a run, "GPU MB:RAM MB:thousandths of a core", each empty where it was not measured; nil if that says
-- nothing.
local function peaks_told(text)
  local g, r, c = string.match(text or "", "^(%d*):(%d*):(%d*)$")
  g, r, c = tonumber(g), tonumber(r), tonumber(c)
  return (g or r or c) and { g, r, c } or nil
end

-- The fields of an event that tell it.
local function peak_fields(told, fields)
  for i, name in ipairs({ "peak_gpu_mb", "peak_ram_mb", "cpu_milli" }) do
    if told and told[i] then fields[#fields + 1], fields[#fields + 2] = name, told[i] end
  end
  return fields
end

-- claim: what it held, as need_of made it. grown: that is more GPU memory than was declared (see grow).
local function learn_peaks(name, size, told, claim, grown)
  local asked = { not grown and claim.g or nil, claim.r, claim.c * 1000 }
  learn_peak(name, told, asked)
  if (size or "") ~= "" then learn_peak(run_field(name, size), told, asked) end
end
