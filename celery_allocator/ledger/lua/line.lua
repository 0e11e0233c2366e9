-- The line in figures: how many wait of each shape, since when the first, and the deliveries that the gate has refused.
-- flags: no-writes
-- uses: base
-- KEYS: prefix. ARGV from 5: how many shapes at most (those whose turn comes first), reasons of refusals.
-- Reply: {now, how many wait, since when the first of all priorities has (ms, or ""), {shape, count, …}, {count of each
--   reason}}. First is who stands at the head of a priority; since: its submit, or its ETA.
-- Touches: nothing (reads waiting, line, shapes, alloc, rejected).
local oldest = ""
local from = "-inf"
while true do -- once per priority
  local head = call("ZRANGE", K.waiting, from, "+inf", "BYSCORE", "LIMIT", 0, 1, "WITHSCORES")
  if not head[1] then break end
  local v = call("HMGET", K.alloc .. head[1], "c_ms", "eta")
  local since = math.max(tonumber(v[1] or "") or now, tonumber(v[2] or "") or 0)
  if oldest == "" or since < oldest then oldest = since end
  from = string.format("%.0f", (floor(head[2] / 1099511627776) + 1) * 1099511627776)
end
local shapes = {}
for _, shape in ipairs(call("ZRANGE", K.shapes, 0, ARGV[5] - 1)) do
  shapes[#shapes + 1] = shape
  shapes[#shapes + 1] = call("ZCARD", K.line .. shape)
end
return { now, call("ZCARD", K.waiting), oldest, shapes, call("HMGET", K.rejected, unpack(ARGV, 6)) }
