-- Copy changes into their stream and tell their channel; what is there already is left out.
-- uses: base
-- KEYS: prefix. ARGV from 5: pairs of an id ("ms-seq", growing) and a change (JSON).
-- Reply: how many were new. Touches: changes.
local function at(id)
  local ms, seq = string.match(id, "^(%d+)-(%d+)$")
  return tonumber(ms), tonumber(seq)
end
local newest = call("XREVRANGE", K.changes, "+", "-", "COUNT", 1)[1]
local last_ms, last_seq = at(newest and newest[1] or "0-0")
local count = 0
for i = 5, #ARGV, 2 do
  local ms, seq = at(ARGV[i])
  if ms > last_ms or (ms == last_ms and seq > last_seq) then
    call("XADD", K.changes, "MAXLEN", "~", MAXLEN, ARGV[i], "change", ARGV[i + 1])
    call("PUBLISH", K.changes, ARGV[i + 1])
    last_ms, last_seq, count = ms, seq, count + 1
  end
end
return count
