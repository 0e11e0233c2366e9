-- Take or keep a duty, which one worker has at a time; or give it up.
-- flags: allow-oom
-- uses: base
-- KEYS: prefix. ARGV from 5: name of the duty, who asks, lease ms ("0": gives it up).
-- Reply: 1 if it is the caller's now, else 0. Touches: duty.
local key = K.duty .. ARGV[5]
local holder = call("GET", key)
if holder and holder ~= ARGV[6] then return 0 end
if ARGV[7] == "0" then
  call("DEL", key)
  return 0
end
call("SET", key, ARGV[6], "PX", ARGV[7])
return 1
