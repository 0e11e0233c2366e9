-- Note that a running task uses more than it was promised. Nothing but the event stream changes.
-- flags: allow-oom
-- uses: base events
-- KEYS: prefix. ARGV from 5: id, token, resource, promised MB, used MB, what its worker does ("warn" or "kill").
-- Reply: 1; 0: it does not run under that token (any more).
-- Touches: alloc (reads), events.
local a = call("HMGET", K.alloc .. ARGV[5], "state", "tok", "tid", "name", "dev")
if a[1] ~= "running" or a[2] ~= ARGV[6] then return 0 end
event("overuse", ARGV[5], a[3], "name", a[4], "device", a[5], "token", a[2], "resource", ARGV[7],
  "promised_mb", ARGV[8], "used_mb", ARGV[9], "action", ARGV[10])
return 1
