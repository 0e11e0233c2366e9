-- Library: where what asks for more than amounts may go, and where it had rather go. Touches: warm, dev; reads: node, on, alloc.
-- A node has labels and says how near its GPUs are to each other; a device has a model. That is told when a node is registered.
-- often: may_go

-- What a node's labels, its GPUs' models and links are does not change within a script.
local node_read, models_read = { labels = {}, links = {} }, {}
-- The words (see anti-affinity) of what is held on a node; a claim changes them.
local apart_read = {}

-- A table that was told of a node. What cannot be read is an empty one.
local function told_of(node, field)
  local read = node_read[field]
  if not read[node] then
    local ok, told = pcall(cjson.decode, call("HGET", K.node .. node, field) or "{}")
    read[node] = ok and type(told) == "table" and told or {}
  end
  return read[node]
end

local function labels_of(node) return told_of(node, "labels") end

local function model_of(dkey)
  if not models_read[dkey] then models_read[dkey] = string.lower(call("HGET", K.dev .. dkey, "model") or "") end
  return models_read[dkey]
end

-- How near two GPUs of a node are, by their ids joined by a space, the smaller first: the larger, the nearer; not listed: 0.
local function links_of(node) return told_of(node, "links") end

-- Whether `need` may go to a device by what it says of that, besides amounts and anti-affinity. A process can use one MIG slice
-- at a time, so that a claim on several takes whole GPUs.
local function matches(dkey, need)
  local limits = need.limits
  if need.k > 1 and string.find(dkey, "_mig_", 1, true) then return false end
  if not limits then return true end
  local node = node_of(dkey)
  if limits.node and limits.node ~= node then return false end
  if limits.model and not string.find(model_of(dkey), limits.model, 1, true) then return false end
  for name, value in pairs(limits.labels or {}) do if labels_of(node)[name] ~= value then return false end end
  return true
end

-- Whether a word is held apart on a node.
local function stands_apart(n, word)
  local words = apart_read[n.name]
  if not words then
    words = {}
    local fleet = fleet_of(n)
    for at = 1, #fleet, 4 do
      for _, id in ipairs(call("SMEMBERS", K.on .. string.sub(fleet[at], 10))) do
        local need = need_of(call("HGET", K.alloc .. id, "shape") or "")
        if need and need.limits and need.limits.apart then words[need.limits.apart] = true end
      end
    end
    apart_read[n.name] = words
  end
  return words[word] == true
end

-- Whether `need` may go to a device now, besides amounts. n: its node.
local function may_go(dkey, n, need)
  if not need.limits then return true end
  return matches(dkey, need) and not (need.limits.apart and stands_apart(n, need.limits.apart))
end

-- Affinity: a word for what stays loaded where a task runs, such as a model. A device is warm for a word that was granted
-- there, or ended there, lately, and that others have not pushed out since. Which process of its worker has it, the ledger
-- does not know. It is advice: nothing is counted by it, and where it is lost only time is.
-- K.warm .. word: its devices by when it was last used there; the field "warm" of a device: its words, the last used first.
local MOST_WARM, MOST_HOPES, MOST_ALIKE = 64, 8, 32 -- devices looked at: for room, for room in time, for what they had loaded

-- What the settings say: for how long (ms) a device is warm, for how long (ms) a lane may wait for one though another has
-- room, and how many words stay loaded for each slot.
local function warmth()
  local lately, wait, keeps = string.match(WARMTH, "^(%d+):(%d+):(%d+)$")
  return tonumber(lately or 0), tonumber(wait or 0), tonumber(keeps or 1)
end

-- The devices that are warm for a word, the last used first.
local warm_read = {}
local function warm_devices(word)
  if not warm_read[word] then
    local since = string.format("(%.0f", now - warmth())
    warm_read[word] = call("ZREVRANGEBYSCORE", K.warm .. word, "+inf", since, "LIMIT", 0, MOST_WARM)
  end
  return warm_read[word]
end

local function is_warm(word, dkey)
  local at = call("ZSCORE", K.warm .. word, dkey)
  return at and now - at < warmth() or false
end

-- The words of a device, the last used first, and how many it keeps.
local function words_of(dkey)
  local v = call("HMGET", K.dev .. dkey, "warm", "slots")
  local ok, words = pcall(cmsgpack.unpack, v[1] or "")
  local _, _, keeps = warmth()
  return ok and type(words) == "table" and words or {}, keeps * math.max(1, tonumber(v[2] or nil) or 0)
end

-- When the last of its words was used on a device, ms; nil: none is loaded.
local function last_use(dkey)
  local word = words_of(dkey)[1]
  return word and tonumber(call("ZSCORE", K.warm .. word, dkey) or nil)
end

local function cool(dkey, word)
  local left = {}
  for _, other in ipairs(words_of(dkey)) do if other ~= word then left[#left + 1] = other end end
  call("HSET", K.dev .. dkey, "warm", cmsgpack.pack(left))
  call("ZREM", K.warm .. word, dkey)
  warm_read[word] = nil
end

-- A word is used on a device: others are pushed out that it keeps no more.
local function warm_up(dkey, word)
  local words, keeps = words_of(dkey)
  if words[1] ~= word then
    local left = { word }
    for _, other in ipairs(words) do
      if other ~= word and #left < keeps then
        left[#left + 1] = other
      elseif other ~= word then
        call("ZREM", K.warm .. other, dkey)
        warm_read[other] = nil
      end
    end
    call("HSET", K.dev .. dkey, "warm", cmsgpack.pack(left))
  end
  call("ZADD", K.warm .. word, NOW, dkey)
  warm_read[word] = nil
end

-- Its worker is gone, and with it all that was loaded.
local function chill(dkey)
  for _, word in ipairs(words_of(dkey)) do
    call("ZREM", K.warm .. word, dkey)
    warm_read[word] = nil
  end
  call("HDEL", K.dev .. dkey, "warm")
end
