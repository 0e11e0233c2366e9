-- An operator decides about an update that could not be read.
-- flags: allow-oom
-- uses: base
-- KEYS: prefix. ARGV from 5: its id among these, what ("retry": it is read once more, as a new entry; "discard").
-- Reply: {"ok", id of the new entry or ""} | {"gone"}. Touches: refused, updates.
local found = call("XRANGE", K.refused, ARGV[5], ARGV[5])[1]
if not found then return { "gone" } end
call("XDEL", K.refused, ARGV[5])
if ARGV[6] ~= "retry" then return { "ok", "" } end
local fields = {}
for i = 1, #found[2], 2 do fields[found[2][i]] = found[2][i + 1] end
return { "ok", call("XADD", K.updates, "*", "update", fields.update or "") }
