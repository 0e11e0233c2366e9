-- Library: dates that come true: what was said of starts, and what came of it. Touches: dates, alloc.
-- p50 is the forecast (see _forecast), which runs the line forward over median run times. It is scored at every start: how
-- much longer or shorter than it said did the task wait? The quantile of that ratio within which nine of ten stayed, apart for
-- short and long waits, makes a p90 of the next one: so nine of ten start before it (conformal prediction by ratios: Lei et
-- al., JASA 113, 2018; for waits in queues: Brevik, Nurmi, Wolski, PPoPP 2006). The p50 is left as it is: corrected by the
-- median of the ratio it was off by more where work comes in bursts (see docs/benchmarks.md).
local ENOUGH, SOME, LOOKBACK = 30, 10, 0.01

-- Waits within a factor of two of each other are one class.
local function class_of_wait(ms) return "w" .. floor(math.log(math.max(1, ms) / 1000 + 1) / math.log(2)) end

-- What is added to both sides of the ratio, so that waits near nothing do not count for too much.
local function softening()
  local all = runs_of("*")
  return 1000 + (all[1] >= FEWEST and all[2] * 0.02 or 0)
end

-- p50 and p90 in ms from now of a wait that the forecast puts at `wait` ms.
local function corrected(wait)
  local soft = softening()
  local v = call("HMGET", K.dates, class_of_wait(wait), "*")
  local s = sketch(v[1])
  if s[1] < ENOUGH then s = sketch(v[2]) end
  local most = s[1] >= SOME and math.max(1, quantile(s, 0.9) / 1000) or 2
  return wait, (wait + soft) * most - soft
end

-- The rule of thumb that ours is compared with: position · mean run time ÷ what runs at a time. nil if no mean is known.
local function thumb(name, position)
  local s = runs_of(name)
  if s[1] == 0 then s = runs_of("*") end
  return s[1] > 0 and position * s[2] / math.max(1, call("ZCARD", K.held)) or nil
end

-- It starts: score what was said of that, once.
local function score_date(id)
  local v = call("HMGET", K.alloc .. id, "p50", "p90", "fw", "fc", "nv")
  if not v[3] then return end
  call("HDEL", K.alloc .. id, "fw")
  local waited, said, soft = now - v[4], tonumber(v[3]), softening()
  local ratio = (waited + soft) / (said + soft) * 1000
  local class = class_of_wait(said)
  local d = call("HMGET", K.dates, class, "*", "error", "thumb", "scored", "covered")
  local out = { class, cmsgpack.pack(absorb(sketch(d[1]), ratio, LOOKBACK)), "*", cmsgpack.pack(absorb(sketch(d[2]), ratio, LOOKBACK)),
    "error", cmsgpack.pack(absorb(sketch(d[3]), math.abs(now - v[1]), 0.001)), "scored", (d[5] or 0) + 1 }
  if now <= tonumber(v[2]) then out[#out + 1], out[#out + 2] = "covered", (d[6] or 0) + 1 end
  if tonumber(v[5]) >= 0 then
    out[#out + 1], out[#out + 2] = "thumb", cmsgpack.pack(absorb(sketch(d[4]), math.abs(waited - v[5]), 0.001))
  end
  call("HSET", K.dates, unpack(out))
end
