-- What tasks turned out to use, and what there is to use.
-- flags: no-writes
-- uses: base runtimes peaks
-- KEYS: prefix. ARGV from 5: fields to look up, each a task's name or name, line feed, size; none: all.
-- Reply: {capacity classes of known devices (memory:cores:ram), per field that is known a list {name, size, told last (s), then
--   for GPU MB, RAM MB and thousandths of a core: declared last, runs, median, 99th of a hundred, most; the last three "" for
--   what was never measured}}. Touches: nothing (reads peaks, classes).
local fields, packed, out = {}, {}, {}
if ARGV[5] then
  for i = 5, #ARGV do fields[#fields + 1] = ARGV[i] end
  packed = call("HMGET", K.peaks, unpack(fields))
else
  local all = call("HGETALL", K.peaks)
  for i = 1, #all, 2 do fields[#fields + 1], packed[#packed + 1] = all[i], all[i + 1] end
end
for n, field in ipairs(fields) do
  local p, any = peaks_in(packed[n]), false
  local name, size = string.match(field, "^([^\n]*)\n(.*)$")
  local row = { name or field, size or "", string.format("%.0f", p[1]) }
  for at = 2, 10, 4 do
    local s = sketch(p[at + 3])
    local half, most = quantile(s, 0.5), quantile(s, 0.99)
    any = any or half
    local told = { p[at], s[1], half or "", most or "", half and math.max(p[at + 1], p[at + 2]) or "" }
    for i, value in ipairs(told) do row[#row + 1] = value ~= "" and string.format("%.0f", value) or "" end
  end
  if any then out[#out + 1] = row end
end
return { call("HKEYS", K.classes), out }
