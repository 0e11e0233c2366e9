-- Read the journal of operator actions.
-- flags: no-writes
-- uses: base
-- KEYS: prefix. ARGV from 5: an entry's number, or "" for the latest ones; at most how many; only those of a smaller number,
--   or "" for all.
-- Reply: {number of actions so far, list of {number, 1 if it keeps a record to restore, else 0, then the fields in the order below},
-- latest first, place of the last one in force that is not remembered any more}. Of an entry that cannot be read all fields
-- are empty. Touches: nothing (reads meta, journal, entry).
local FIELDS = { "action", "args", "objects", "actor", "reason", "source", "at", "before", "after", "state", "done", "undone",
  "undone_at", "undone_by", "undone_reason", "batch" }
local numbers = {}
if ARGV[5] == "" then
  numbers = call("ZREVRANGEBYSCORE", K.journal, ARGV[7] == "" and "+inf" or "(" .. ARGV[7], "-inf", "LIMIT", 0, ARGV[6])
elseif call("ZSCORE", K.journal, ARGV[5]) then
  numbers[1] = ARGV[5]
end
local out = {}
for i, number in ipairs(numbers) do
  local v = redis.pcall("HMGET", K.entry .. number, unpack(FIELDS))
  local row = { number, redis.pcall("HEXISTS", K.entry .. number, "payload") == 1 and 1 or 0 }
  for k = 1, #FIELDS do row[k + 2] = v[k] or "" end
  out[i] = row
end
local meta = call("HMGET", K.meta, "ops", "dropped")
return { tonumber(meta[1] or 0), out, tonumber(meta[2] or 0) }
