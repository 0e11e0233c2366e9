-- How good the dates were that were given to those that had to wait.
-- flags: no-writes
-- uses: base runtimes
-- KEYS: prefix. ARGV from 5: nothing.
-- Reply: {starts that were scored, of these at or before their p90, median error ms or "", nine of ten were off by less ms or
--   "", median error of the rule of thumb ms or ""}. Touches: nothing (reads dates).
local d = call("HMGET", K.dates, "scored", "covered", "error", "thumb")
local function text(value) return value and string.format("%.0f", value) or "" end
local off, thumb = sketch(d[3]), sketch(d[4])
return { d[1] or "0", d[2] or "0", text(quantile(off, 0.5)), text(quantile(off, 0.9)), text(quantile(thumb, 0.5)) }
