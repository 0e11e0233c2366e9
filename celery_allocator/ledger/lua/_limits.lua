-- Library: where what asks for more than amounts may go. Touches: node, dev, on, alloc (reads).
-- A node has labels and says how near its GPUs are to each other; a device has a model. That is told when a node is registered.
-- often: may_go

-- What a node's labels, its GPUs' models and links are does not change within a script.
local labels_read, models_read, links_read = {}, {}, {}
-- The words (see anti-affinity) of what is held on a node; a claim changes them.
local apart_read = {}

local function labels_of(node)
  if not labels_read[node] then
    local ok, labels = pcall(cjson.decode, call("HGET", K.node .. node, "labels") or "{}")
    labels_read[node] = ok and type(labels) == "table" and labels or {}
  end
  return labels_read[node]
end

local function model_of(dkey)
  if not models_read[dkey] then models_read[dkey] = string.lower(call("HGET", K.dev .. dkey, "model") or "") end
  return models_read[dkey]
end

-- How near two GPUs of a node are, by their ids joined by a space, the smaller first: the larger, the nearer; not listed: 0.
local function links_of(node)
  if not links_read[node] then
    local ok, links = pcall(cjson.decode, call("HGET", K.node .. node, "links") or "{}")
    links_read[node] = ok and type(links) == "table" and links or {}
  end
  return links_read[node]
end

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
