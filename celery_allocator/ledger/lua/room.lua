-- What is free on the device that has most.
-- flags: no-writes
-- uses: base index room
-- KEYS: prefix. ARGV: the common ones only.
-- Reply: {free GPU MB, free cores, free RAM MB}. Touches: nothing (reads index, node).
return { roomiest() }
