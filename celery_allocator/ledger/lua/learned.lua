-- What the ledger has learned about run times.
-- flags: no-writes
-- uses: base runtimes
-- KEYS: prefix. ARGV from 5: nothing.
-- Reply: per task name and size a list {name, size, runs, mean ms, median ms, ms within which nine of ten ended}; name "*": all.
-- Touches: nothing (reads runtimes).
local out, all = {}, call("HGETALL", K.runtimes)
for i = 1, #all, 2 do
  local name, size = string.match(all[i], "^([^\n]*)\n(.*)$")
  local s = sketch(all[i + 1])
  local half = quantile(s, 0.5)
  if half then
    out[#out + 1] = { name or all[i], size or "", string.format("%.0f", s[1]), string.format("%.0f", s[2]),
      string.format("%.0f", half), string.format("%.0f", quantile(s, PROMISED)) }
  end
end
return out
