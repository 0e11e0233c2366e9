-- Library: what every script needs. KEYS[1] is the ledger's prefix; the first four ARGV are the same for every script:
--   1 now: milliseconds since the epoch, or "" to read TIME (given only by simulations)
--   2 MAXLEN: entries the event stream keeps    3 DEADLINE: ms until an unstarted grant is published again
--   4 LOSSES: times a repeatable task may lose its worker
local P = KEYS[1]
local call = redis.call
local floor = math.floor
local MAXLEN, DEADLINE, LOSSES = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
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
