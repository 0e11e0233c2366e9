-- Read the circuit breakers that are not closed, and those whose keeper remembers something.
-- flags: no-writes
-- uses: base
-- KEYS: prefix. ARGV from 5: nothing.
-- Reply: list of {name, how many more may be granted (CLOSING of _breaker or little
-- less: it is closed) or "", what its keeper remembers or "", how many are set aside}.
-- Touches: nothing (reads breakers, breaker, aside).
local seen, out = {}, {}
for _, key in ipairs({ K.breakers, K.breaker }) do
  for _, name in ipairs(call("HKEYS", key)) do
    if not seen[name] then
      seen[name] = true
      out[#out + 1] = { name, call("HGET", K.breakers, name) or "", call("HGET", K.breaker, name) or "",
        call("ZCARD", K.aside .. name) }
    end
  end
end
return out
