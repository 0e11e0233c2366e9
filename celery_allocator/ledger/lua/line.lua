-- The line in figures: how many wait of each shape, since when the first, and the deliveries that the gate has refused.
-- flags: no-writes
-- uses: base line
-- KEYS: prefix. ARGV from 5: how many lanes to look at, at most, reasons of refusals.
-- Reply: {now, how many wait, since when the one has that has waited longest of the first of each priority in each lane (ms,
--   or ""), {shape, count, …}, {count of each reason}}. since: its submit, or its ETA. With ageing: of the first of each lane.
-- Touches: nothing (reads waiting, line, turn, queued, alloc, rejected).
local oldest, counts, order, left = "", {}, {}, tonumber(ARGV[5])
local looks = 2 * left -- at firsts of priorities, in all

-- The first of each priority, as an urgent one is before those that have waited for longer. Places of one priority lie within
-- POINT of each other, if nobody ages (see _line); a quarter of it on this side of a priority's own is left to years before 2026.
local function look_at(lane)
  local from = "-inf"
  repeat
    local first = call("ZRANGE", K.line .. lane, from, "+inf", "BYSCORE", "LIMIT", 0, 1, "WITHSCORES")
    if not first[1] then return end
    local v = call("HMGET", K.alloc .. first[1], "c_ms", "eta")
    local since = math.max(tonumber(v[1] or "") or now, tonumber(v[2] or "") or 0)
    if oldest == "" or since < oldest then oldest = since end
    from = string.format("%.0f", (floor((first[2] + POINT / 4) / POINT) + 1) * POINT - POINT / 4)
    looks = looks - 1
  until looks <= 0 or POINT < 2 ^ 43
end

for _, tenant in ipairs(call("SMEMBERS", K.queued)) do
  for _, lane in ipairs(call("ZRANGE", K.turn .. tenant, 0, left - 1)) do
    local shape = lane_parts(lane)
    if not counts[shape] then order[#order + 1] = shape end
    counts[shape] = (counts[shape] or 0) + call("ZCARD", K.line .. lane)
    if looks > 0 then look_at(lane) end
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
