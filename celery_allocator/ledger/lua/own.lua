-- Note that an allocation which is about to be submitted is an owner's, if he has fewer live ones than he may; or forget it.
-- flags: allow-oom
-- uses: base
-- KEYS: prefix. ARGV from 5: owner, id, what ("take"|"drop"), at most how many ("": any number).
-- A crash between this and submit leaves an id without a record: it counts for a minute. Those that have ended are dropped here.
-- Reply: {"ok"} | {"full", how many he has}. Touches: own (reads alloc, tomb).
local PENDING = 60000
local mine, id = K.own .. ARGV[5], ARGV[6]
if ARGV[7] == "drop" then
  call("ZREM", mine, id)
  return { "ok" }
end
local count, known = 0, false
local all = call("ZRANGE", mine, 0, -1, "WITHSCORES")
for i = 1, #all, 2 do
  local young = now - all[i + 1] < PENDING and call("EXISTS", K.tomb .. all[i]) == 0
  if call("EXISTS", K.alloc .. all[i]) == 1 or young then
    count = count + 1
    known = known or all[i] == id
  else
    call("ZREM", mine, all[i])
  end
end
if not known and ARGV[8] ~= "" and count >= tonumber(ARGV[8]) then return { "full", count } end
call("ZADD", mine, NOW, id)
return { "ok" }
