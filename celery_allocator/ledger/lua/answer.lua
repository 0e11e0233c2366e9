-- An update is done with: write its reply, and forget it. Once, whoever says so first.
-- flags: allow-oom
-- uses: base
-- KEYS: prefix. ARGV from 5: the update's id in its stream, the group of consumers, its idempotency key or "", what is
--   remembered under that, the reply, replies that are kept, why it could not be read or "", what it said
--   then, such updates that are kept, ms for which it is remembered.
-- Reply: 1, or 0 if it has been answered already. Touches: updates, updated, replies, refused.
local id = ARGV[5]
if call("XACK", K.updates, ARGV[6], id) == 0 then return 0 end
call("XDEL", K.updates, id)
if ARGV[7] ~= "" then call("SET", K.updated .. ARGV[7], ARGV[8], "PX", ARGV[14]) end
if ARGV[11] ~= "" then
  call("XADD", K.refused, "MAXLEN", ARGV[13], "*", "from", id, "at", NOW, "error", ARGV[11], "update", ARGV[12])
end
call("XADD", K.replies, "MAXLEN", "~", ARGV[10], "*", "update", id, "reply", ARGV[9])
return 1
