-- Try a strategy that a user registered, on a node that is made up and on the pool as it is.
-- uses: base events cores index line limits runtimes tenants claim breaker reserve place
-- KEYS: prefix. ARGV from 5: the strategy's name.
-- Reply: what is wrong with it, or "". Touches: nothing.
local NUMBER, FUNCTION = "number", "function"
local READING = " EXISTS GET HEXISTS HGET HGETALL HKEYS HLEN HMGET HVALS SCARD SISMEMBER SMEMBERS TIME ZCARD ZCOUNT ZMSCORE "
  .. "ZRANGE ZRANGEBYSCORE ZRANK ZREVRANGE ZREVRANGEBYSCORE ZSCORE "
-- From here on whatever it calls comes here: it may have been written by somebody in a hurry.
local allowed = call
call = function(command, ...)
  if not string.find(READING, " " .. string.upper(command) .. " ", 1, true) then
    error("it calls " .. command .. ", and may only read", 2)
  end
  return allowed(command, ...)
end
local function told(problem) return type(problem) == "table" and problem.err or tostring(problem) end

local ok, rule = pcall(strategy_of, ARGV[5])
if not ok then return told(rule) end
if type(rule) ~= "table" then return "it returns a " .. type(rule) .. ", and must return a table { score = …, find = … }" end
if type(rule.score) ~= FUNCTION then return "the table that it returns has no function score(view, taken, need)" end
for _, name in ipairs({ "find", "learn" }) do
  if rule[name] ~= nil and type(rule[name]) ~= FUNCTION then return "what it returns as " .. name .. " is no function" end
end
for _, need in ipairs({ need_of("1000:1:0:t"), need_of("1000:1:100:m:2"), need_of("0:1:0:t") }) do
  local fleet = { "00000001|trial/gpu_0", "w", 8000, 1, "00000002|trial/gpu_1", "w", 24000, 1, "00000003|trial/cpu", "w", 0, 1 }
  local view = node_view({ name = "trial", c = 4, r = 16000, packed = cmsgpack.pack(fleet), mems = cmsgpack.pack({ 24000, 24000, 0 }) })
  local taken = not need.gpu and {} or need.k == 1 and { 1 } or { 1, 2 }
  local fine, score = pcall(rule.score, view, taken, need)
  if not fine then return "score(view, taken, need) fails: " .. told(score) end
  if type(score) ~= NUMBER or score ~= score then return "score(view, taken, need) returns " .. tostring(score) .. ", and must return a number" end
  if rule.find then
    local found, dkey = pcall(rule.find, need, {})
    if not found then return "find(need, cache) fails: " .. told(dkey) end
    if dkey ~= nil and type(dkey) ~= "string" then return "find(need, cache) returns a " .. type(dkey) .. ", and must return a device or nil" end
  end
end
return ""
