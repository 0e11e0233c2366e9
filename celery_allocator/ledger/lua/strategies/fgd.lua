-- Strategy: fragmentation gradient descent (Weng et al., "Beware of Fragmentation", USENIX ATC 2023): where the placement
-- adds least to the GPU capacity that what is asked for lately could not use.
-- Amounts are in thousandths of a device. Popular shapes are those that make up 95 % of the submissions under this strategy,
-- the latest counting most. F(node) = sum over popular shapes m of share(m) * (all that is idle on the node's GPUs, if the
-- node cannot host m or m needs no GPU; else what is idle on GPUs that have too little memory for m). The score is
-- sigmoid((F before - F after) / 1000) as a whole number from 0 to 100. RAM is no part of a shape here, as in the paper.
local WINDOW = 2000 -- submissions after which one counts 1/e
local COVERED = 0.95
local MOST = 256 -- shapes that are remembered
local LARGEST = 1e100
local shapes, levels, limits -- of this script

-- The popular shapes: { cores, GPU MB (0: none), GPUs, share }.
local function popular()
  if shapes then return shapes end
  local all, total, covered = call("ZREVRANGEBYSCORE", K.demand, "+inf", "-inf", "WITHSCORES"), 0, 0
  shapes, levels, limits = {}, {}, {}
  for i = 2, #all, 2 do total = total + all[i] end
  for i = 1, #all, 2 do
    local g, c, k = string.match(all[i], "^(%d+):(%d+):(%d+)$")
    if covered >= COVERED * total then break end
    covered = covered + all[i + 1]
    if g then
      shapes[#shapes + 1] = { c = tonumber(c), g = tonumber(g), k = tonumber(k), share = all[i + 1] / total }
      limits[#limits + 1] = tonumber(c)
    end
  end
  table.sort(limits)
  return shapes
end

-- What nodes with `cores` free have in common. all: share of the shapes that cannot use what is idle, whatever it is.
-- single, several: the others that ask for one GPU, and for more.
local function level_of(cores)
  popular()
  local at = 0
  while limits[at + 1] and limits[at + 1] <= cores do at = at + 1 end
  local level = levels[at]
  if not level then
    level = { at = at, all = 0, single = {}, several = {}, above = {} }
    for _, m in ipairs(shapes) do
      if m.g == 0 or m.c > cores then
        level.all = level.all + m.share
      else
        local list = m.k == 1 and level.single or level.several
        list[#list + 1] = m
      end
    end
    levels[at] = level
  end
  return level
end

-- Share of the shapes for one GPU that need more than `free` MB. A node that can host none of a shape has only GPUs that are
-- too small for it, so that these need no rule of their own.
local function above(level, free)
  local share = level.above[free]
  if not share then
    share = 0
    for _, m in ipairs(level.single) do if m.g > free then share = share + m.share end end
    level.above[free] = share
  end
  return share
end

local function idle_of(free, capacity) return free > 0 and capacity > 0 and free * 1000 / capacity or 0 end

-- The part of F that shapes for several GPUs make. left: what GPUs that are taken have left.
local function of_several(level, view, total, left)
  local sum = 0
  for _, m in ipairs(level.several) do
    local fitting, small = 0, 0
    for i, free in ipairs(view.free) do
      free = left[i] or free
      if free >= m.g then fitting = fitting + 1 else small = small + idle_of(free, view.mem[i]) end
    end
    sum = sum + m.share * (fitting >= m.k and small or total)
  end
  return sum
end

-- What is common to all devices of nodes in the same state. F: before; total, sum: what F after begins with.
local states = {}
local function state_of(view, need)
  local before, after = level_of(view.c), level_of(view.c - need.c)
  local key = table.concat({ before.at, after.at, need.g, view.n.mems or "", table.concat(view.free, ",") }, "|")
  local state = states[key]
  if state then return state end
  state = { after = after, total = 0, sum = 0, by = {} }
  local sum = 0
  for i, free in ipairs(view.free) do
    local idle = idle_of(free, view.mem[i])
    state.total = state.total + idle
    sum = sum + idle * above(before, free)
    state.sum = state.sum + idle * above(after, free)
  end
  state.F = before.all * state.total + sum + of_several(before, view, state.total, {})
  states[key] = state
  return state
end

local function score(view, taken, need)
  if view.need ~= need then view.need, view.state = need, state_of(view, need) end
  local state = view.state
  local key = taken[2] and table.concat(taken, ",") or taken[1] or 0
  if state.by[key] then return state.by[key] end
  local total, sum, left = state.total, state.sum, {}
  for _, i in ipairs(taken) do
    local free, mem = view.free[i], view.mem[i]
    local idle, idle_left = idle_of(free, mem), idle_of(free - need.g, mem)
    total = total - idle + idle_left
    sum = sum - idle * above(state.after, free) + idle_left * above(state.after, free - need.g)
    left[i] = free - need.g
  end
  local F = state.after.all * total + sum + of_several(state.after, view, total, left)
  -- A hair more, so that what is equal stays so whatever the order of adding it up.
  state.by[key] = floor(100 / (1 + math.exp((F - state.F) / 1000)) + 1e-6)
  return state.by[key]
end

-- One more submission asked for this. The unit grows, instead of all the others shrinking.
local function learn(need)
  local unit = tonumber(call("HGET", K.meta, "demand") or 1)
  if unit > LARGEST then
    local all = call("ZRANGE", K.demand, 0, -1, "WITHSCORES")
    for i = 1, #all, 2 do call("ZADD", K.demand, string.format("%.17g", all[i + 1] / unit), all[i]) end
    unit = 1
  end
  local shape = least_of(need) .. ":" .. need.c .. ":" .. (need.k or 1)
  local before = call("ZSCORE", K.demand, shape)
  call("ZADD", K.demand, string.format("%.17g", (before or 0) + unit), shape)
  for _, rare in ipairs(before and {} or call("ZRANGE", K.demand, 0, -1 - MOST)) do call("ZREM", K.demand, rare) end
  call("HSET", K.meta, "demand", string.format("%.17g", unit * (1 + 1 / WINDOW)))
end

return { score = score, blind = true, learn = learn }
