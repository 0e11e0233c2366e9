-- Library: the waiting line. Touches: waiting, line, shapes. A shape is "g:c:r:kind".
-- Larger priority first, then arrival: score = seq − priority · 2^40, exact in a double for |priority| ≤ 1000.
local function line_score(priority, seq) return seq - priority * 1099511627776 end

local function enqueue(id, shape, score)
  call("ZADD", K.waiting, score, id)
  call("ZADD", K.line .. shape, score, id)
  call("ZADD", K.shapes, "LT", score, shape)
end

local function dequeue(id, shape)
  call("ZREM", K.waiting, id)
  call("ZREM", K.line .. shape, id)
  local head = call("ZRANGE", K.line .. shape, 0, 0, "WITHSCORES")
  if head[1] then call("ZADD", K.shapes, head[2], shape) else call("ZREM", K.shapes, shape) end
end

-- nil for what is no shape.
local function need_of(shape)
  local g, c, r, kind = string.match(shape, "^(%d+):(%d+):(%d+):(%a)$")
  return g and { g = tonumber(g), c = tonumber(c), r = tonumber(r), kind = kind }
end

-- Estimated start in ms, or nil while no run time is known: `ahead` tasks, each of the decayed mean length of its name
-- (of all names, where its own is unknown), leaving through as many servers as hold something now.
local function estimate(name, position)
  local mean = call("HMGET", K.runtimes, name, "*")
  local length = tonumber(mean[1] or mean[2] or "")
  if not length then return nil end
  return now + floor(position * length / math.max(1, call("ZCARD", K.held)))
end
