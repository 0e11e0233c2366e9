-- The line in figures: how many wait of each shape, since when the first, and the deliveries that the gate has refused.
-- flags: no-writes
-- uses: base line
-- KEYS: prefix. ARGV from 5: how many lanes to look at, at most, reasons of refusals.
-- Reply: {now, how many wait, since when the one that has waited longest of those at the head of a lane has (ms, or ""), {shape, count, …}, {count of each
--   reason}}. since: its submit, or its ETA.
-- Touches: nothing (reads waiting, line, turn, queued, alloc, rejected).
local oldest, counts, order, left = "", {}, {}, tonumber(ARGV[5])
for _, tenant in ipairs(call("SMEMBERS", K.queued)) do
  for _, lane in ipairs(call("ZRANGE", K.turn .. tenant, 0, left - 1)) do
    local shape, first = lane_parts(lane), call("ZRANGE", K.line .. lane, 0, 0)[1]
    if not counts[shape] then order[#order + 1] = shape end
    counts[shape] = (counts[shape] or 0) + call("ZCARD", K.line .. lane)
    local v = first and call("HMGET", K.alloc .. first, "c_ms", "eta") or {}
    local since = math.max(tonumber(v[1] or "") or now, tonumber(v[2] or "") or 0)
    if oldest == "" or since < oldest then oldest = since end
    left = left - 1
  end
  if left <= 0 then break end
end
local shapes = {}
for _, shape in ipairs(order) do
  shapes[#shapes + 1] = shape
  shapes[#shapes + 1] = counts[shape]
end
return { now, call("ZCARD", K.waiting), oldest, shapes, call("HMGET", K.rejected, unpack(ARGV, 6)) }
