-- Library: the circuit breakers of task names. Touches: breakers, aside and all that hold touches.
-- A name with a breaker that is not closed may be granted as often as the breaker says (0: not at all). Its tasks wait in
-- line as all others do; whose turn comes, and may not be granted, is set aside: on hold, until the breaker lets it go on.
-- So what one name's tasks do to the line costs the others nothing.

-- A breaker that is closed while much is still set aside: each tick lets some of that go on, until nothing is left.
local CLOSING = 1000000000
local function is_closing(left) return left and tonumber(left) > CLOSING / 2 end

-- How many more grants a name may have; nil: any number.
local function allowance(name)
  local left = call("HGET", K.breakers, name)
  return left and tonumber(left) or nil
end

local function admits(name, kind)
  local left = kind == "t" and allowance(name)
  return not left or left > 0
end

-- A task of that name was granted.
local function spend(name, kind)
  local left = kind == "t" and allowance(name)
  if left and left > 0 then call("HSET", K.breakers, name, left - 1) end
end

local function set_aside(id, a)
  hold(id, a, "breaker")
  call("ZADD", K.aside .. a.name, a.score, id)
end
