-- Library: another place in line for what has not been granted. Touches: alloc, aside, forecast and all that enqueue and
-- dequeue touch.

local function move(id, a, score)
  if a.state == "waiting" then dequeue(id, a, true) end
  a.score = score
  call("HSET", K.alloc .. id, "score", score)
  -- What was said of its start holds no more, and what would be said of others.
  call("HDEL", K.alloc .. id, "fw")
  call("DEL", K.forecast)
  if a.state == "waiting" then enqueue(id, a) end
  call("ZADD", K.aside .. a.name, "XX", score, id)
end
