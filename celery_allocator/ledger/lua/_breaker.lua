-- Library: the circuit breakers of task names. Touches: breakers.
-- A name with a breaker that is not closed may be granted as often as the breaker says (0: not at all). Its tasks wait in
-- line as all others do; whose turn comes, and may not be granted, is set aside: on hold, until the breaker lets it go on.
-- So what one name's tasks do to the line costs the others nothing.
-- often: admits spend

-- A breaker that is closed while much is still set aside: each tick lets some of that go on, until nothing is left.
local CLOSING = 1000000000
local function is_closing(left) return left and (tonumber(left) or 0) > CLOSING / 2 end

-- Whether an allocation of kind t|m may be granted. a.left becomes how many of its name may (nil: any number), for `spend`.
local function admits(a, kind)
  local left = kind == "t" and call("HGET", K.breakers, a.name)
  a.left = left and tonumber(left) or nil
  return not a.left or a.left > 0
end

-- It was granted, as `admits` said it may be.
local function spend(a)
  if a.left then call("HSET", K.breakers, a.name, a.left - 1) end
end
