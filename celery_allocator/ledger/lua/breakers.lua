-- Read the circuit breakers that are not closed, and those whose keeper remembers something.
-- flags: no-writes
-- uses: base breaker
-- KEYS: prefix. ARGV from 5: nothing.
-- Reply: list of {name, how many more may be granted ("": any number, it is closed), what its keeper remembers or "", how
-- many are set aside}.
-- Touches: nothing (reads breakers, breaker, aside).
local seen, out = {}, {}
for _, key in ipairs({ K.breakers, K.breaker }) do
  for _, name in ipairs(call("HKEYS", key)) do
    if not seen[name] then
      seen[name] = true
      local left = call("HGET", K.breakers, name)
      out[#out + 1] = { name, left and not is_closing(left) and left or "", call("HGET", K.breaker, name) or "",
        call("ZCARD", K.aside .. name) }
    end
  end
end
return out
