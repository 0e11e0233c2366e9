-- Read the journal of operator actions.
-- flags: no-writes
-- uses: base
-- KEYS: prefix. ARGV from 5: an entry's number, or "" for the latest ones; at most how many; only those of a smaller number,
--   or "" for all.
-- Reply: {number of actions so far, list of {number, 1 if it keeps a record to restore, else 0, then the fields in the order below}},
-- latest first. Touches: nothing (reads meta, journal, entry).
local FIELDS = { "action", "args", "objects", "actor", "reason", "source", "at", "before", "after", "state", "done", "undone",
  "undone_at", "undone_by", "undone_reason" }
local numbers = { ARGV[5] }
if ARGV[5] == "" then
  numbers = call("ZREVRANGEBYSCORE", K.journal, ARGV[7] == "" and "+inf" or "(" .. ARGV[7], "-inf", "LIMIT", 0, ARGV[6])
end
local out = {}
for _, number in ipairs(numbers) do
  local v = call("HMGET", K.entry .. number, unpack(FIELDS))
  if v[1] then
    local row = { number, call("HEXISTS", K.entry .. number, "payload") }
    for i = 1, #FIELDS do row[i + 2] = v[i] or "" end
    out[#out + 1] = row
  end
end
return { tonumber(call("HGET", K.meta, "ops") or 0), out }
