-- Library: what every script needs. KEYS[1] is the ledger's prefix; the first four ARGV are the same for every script:
--   1 now: milliseconds since the epoch, or "" to read TIME (given only by simulations)
--   2 MAXLEN: entries the event stream keeps    3 DEADLINE: ms until an unstarted grant is published again
--   4 policy, in numbers and a word separated by colons: LOSSES, times a repeatable task may lose its worker; MAX_BYPASS,
--     times, and MAX_BYPASS_MS, for how long the first in line may be passed by before a device is kept for it; POINT, what
--     one point of priority is worth in line (see _line); BACKFILL: "easy", "greedy" or "none" (see _pass); WARMTH: what is
--     said of affinity (see warmth in _limits), in a text of its own
-- often: node_of
local P = KEYS[1]
local call = redis.call
local floor = math.floor
local MAXLEN, DEADLINE = ARGV[2], tonumber(ARGV[3])
local LOSSES, MAX_BYPASS, MAX_BYPASS_MS, POINT, BACKFILL, WARMTH = string.match(ARGV[4], "^(%d+):(%d+):(%d+):(%d+):(%a+):?(.*)$")
LOSSES, MAX_BYPASS, MAX_BYPASS_MS, POINT = tonumber(LOSSES), tonumber(MAX_BYPASS), tonumber(MAX_BYPASS_MS), tonumber(POINT)
local now
if ARGV[1] ~= "" then
  now = tonumber(ARGV[1])
else
  local t = call("TIME")
  now = t[1] * 1000 + floor(t[2] / 1000)
end
-- The same as text: the server turns every number that it is given into text again.
local NOW = string.format("%.0f", now)

local function split(text)
  local out, n = {}, 0
  for word in string.gmatch(text or "", "%S+") do n = n + 1; out[n] = word end
  return out
end

-- "node/gpu_0" → "node". Node names hold no slash.
local function node_of(dkey) return string.match(dkey, "^([^/]+)/") end
