-- A consumer group reads on in the event stream. Nothing is read while entries that were read before are not acknowledged,
-- nor where some were trimmed before they were read: the caller is told first, so that it can write that down.
-- flags: allow-oom
-- uses: base
-- KEYS: prefix. ARGV from 5: group, consumer, count, what ("new", or "unacknowledged": those read before, again), up to which
--   number of entries ever added the caller knows that some are missing.
-- Reply: {"read", entries, how many follow} | {"unacknowledged", how many} | {"missed", how many, last entry read, first that
--   there is, number of the last trimmed} | {"no group"}. entries: as JSON, which clients read
--   much faster than nested replies: [[id, [field, value, …] or false if it was trimmed], …]
-- Touches: events.
local group, consumer, count, accepted = ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[9])
local function pairs_of(flat)
  local out = {}
  for i = 1, #flat, 2 do out[flat[i]] = flat[i + 1] end
  return out
end
local function before(one, other)
  local ms, seq = string.match(one, "(%d+)-(%d+)")
  local other_ms, other_seq = string.match(other, "(%d+)-(%d+)")
  if ms ~= other_ms then return tonumber(ms) < tonumber(other_ms) end
  return tonumber(seq) < tonumber(other_seq)
end
local groups = redis.pcall("XINFO", "GROUPS", K.events)
if groups.err then return { "no group" } end
local own
for _, flat in ipairs(groups) do
  local found = pairs_of(flat)
  if found.name == group then own = found end
end
if not own then return { "no group" } end
local stream = pairs_of(call("XINFO", "STREAM", K.events))
local added = stream["entries-added"]

if ARGV[8] == "unacknowledged" then
  local reply = call("XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS", K.events, "0")
  if own.pending > 0 and not (reply and reply[1] and reply[1][2][1]) then -- some were read under another name
    call("XAUTOCLAIM", K.events, group, consumer, 0, "0-0", "COUNT", count, "JUSTID")
    reply = call("XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS", K.events, "0")
  end
  return { "read", cjson.encode(reply and reply[1] and reply[1][2] or {}), math.max(0, added - (own["entries-read"] or added)) }
end
if own.pending > 0 then return { "unacknowledged", own.pending } end

local trimmed = added - stream.length
-- The server does not know where the group stands after somebody has deleted entries or set the group: then neither do we.
local stands = own["entries-read"] or trimmed
local first = stream["first-entry"]
-- Nor where the last entry that it read is still there: none was trimmed before it was read, whatever the counts say.
if first and not before(own["last-delivered-id"], first[1]) then stands = math.max(stands, trimmed) end
if trimmed > stands and trimmed > accepted then
  return { "missed", trimmed - stands, own["last-delivered-id"], first and first[1] or stream["last-generated-id"], trimmed }
end
local reply = call("XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS", K.events, ">")
local entries = reply and reply[1] and reply[1][2] or {}
stands = #entries < tonumber(count) and added or math.max(stands, trimmed) + #entries
if #entries > 0 then
  -- Servers differ in how they count on after a gap, and Redis 7.0 forgets the count when it restarts.
  call("XGROUP", "SETID", K.events, group, entries[#entries][1], "ENTRIESREAD", stands)
end
return { "read", cjson.encode(entries), math.max(0, added - stands) }
