-- Library: how long tasks run. Touches: runtimes.
-- Per task name (and size) a histogram over buckets whose bounds grow by a tenth, so that a quantile is known to within
-- 5 % whatever it is: the mapping of DDSketch (Masson, Rim, Lee: PVLDB 12, 2019). Newer runs count more: with each one the
-- weights of all others shrink, by DECAY once there are enough. Packed: { runs, mean, bucket, weight, bucket, weight, … }
-- by bucket; the weights add up to one.
-- often: sketch run_field runs_of run_ms pace_of
local GROWTH = math.log(1.1)
local FEWEST = 3 -- runs from which on others may be told to rely on it
local PROMISED = 0.9 -- quantile by which a task counts as ended, where another is waiting for that

local function bucket_of(value) return value <= 1 and 0 or math.ceil(math.log(value) / GROWTH) end
local function middle_of(bucket) return bucket == 0 and 1 or 2 * math.exp(bucket * GROWTH) / 2.1 end

-- What cannot be read is nothing: it is learned anew.
local function sketch(packed)
  local ok, s = pcall(cmsgpack.unpack, packed or "")
  local whole = ok and type(s) == "table" and #s >= 4 and #s % 2 == 0
  for i = 1, whole and #s or 0 do whole = whole and type(s[i]) == "number" and s[i] >= 0 end -- what is no number is not >= 0
  return whole and s or { 0, 0 }
end

-- One value more. decay: weight of the newest, once there are 1 / decay of them.
local function absorb(s, value, decay)
  local runs = s[1] + 1
  local weight, b, placed = math.max(decay, 1 / runs), bucket_of(value), false
  local out = { runs, s[2] + math.max(decay, 1 / runs) * (value - s[2]) }
  for i = 3, #s, 2 do
    if not placed and s[i] >= b then
      local same = s[i] == b and s[i + 1] * (1 - weight) or 0
      out[#out + 1], out[#out + 2], placed = b, same + weight, true
    end
    local left = s[i + 1] * (1 - weight)
    if s[i] ~= b and left > 0.0001 then out[#out + 1], out[#out + 2] = s[i], left end
  end
  if not placed then out[#out + 1], out[#out + 2] = b, weight end
  return out
end

-- The value below which a share q of the weight lies. above: of those values only that are larger; nil if there are none.
local function quantile(s, q, above)
  local from, total = (above or 0) > 0 and bucket_of(above) or -1, 0
  for i = 3, #s, 2 do if s[i] > from then total = total + s[i + 1] end end
  if total <= 0 then return nil end
  local sum, last = 0, nil
  for i = 3, #s, 2 do
    if s[i] > from then
      sum, last = sum + s[i + 1], s[i]
      if sum >= q * total - 1e-9 then break end -- sums of tenths are not exact
    end
  end
  return middle_of(last)
end

local function run_field(name, size) return (size or "") == "" and name or name .. "\n" .. size end

local known_runs = {}
-- The sketch of a name and size; of the name alone, where that size has not been seen often enough.
local function runs_of(name, size)
  local field = run_field(name, size)
  if known_runs[field] == nil then
    local s = sketch(call("HGET", K.runtimes, field))
    if s[1] == 0 and field ~= name then s = runs_of(name) end
    known_runs[field] = s
  end
  return known_runs[field]
end

local function learn_run(name, size, ms, decay)
  local fields = { "*", name }
  if (size or "") ~= "" then fields[3] = run_field(name, size) end
  local found, out = call("HMGET", K.runtimes, unpack(fields)), {}
  ms = math.max(0, ms) -- the clock may have been put back
  for i, field in ipairs(fields) do
    out[#out + 1], out[#out + 2] = field, cmsgpack.pack(absorb(sketch(found[i]), ms, decay))
    known_runs[field] = nil
  end
  call("HSET", K.runtimes, unpack(out))
end

-- How long it holds what it is granted, at most, in ms: as was said for it (xrt), else by its name; nil if nobody knows.
-- ran: it has run for so long already, so that only longer ones tell. Longer than any: half of that again.
local function run_ms(name, size, xrt, ran)
  if xrt then return tonumber(xrt) end
  local s = runs_of(name, size)
  -- A size that was seen once or twice: as its name.
  if s[1] < FEWEST then s = runs_of(name) end
  if s[1] < FEWEST then return nil end
  return quantile(s, PROMISED, ran) or (ran or 0) * 1.5
end

-- How long it runs as a rule; ran: it has run for so long already. nil if nobody knows.
local function usual_ms(name, size, xrt, ran)
  local s = runs_of(name, size)
  if s[1] == 0 and not xrt then s = runs_of("*") end
  local usual = s[1] > 0 and quantile(s, 0.5, ran) or nil
  if xrt and (not usual or usual > tonumber(xrt)) then usual = tonumber(xrt) end
  return usual
end

-- Tasks whose lengths lie within a factor of two of each other have one pace; "" where nobody knows.
local function pace_of(ms)
  return ms and string.format("%d", math.max(0, math.ceil(math.log(math.max(1, ms) / 1000) / math.log(2)))) or ""
end
