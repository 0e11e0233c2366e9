-- Give a ledger back what it had learned: mean run times.
-- flags: allow-oom
-- uses: base
-- KEYS: prefix. ARGV from 5: overwrite ("1"|"0": means that it has itself stay), then pairs of a task name ("*": all) and its
--   mean run time in ms.
-- Reply: names whose mean was set. Touches: runtimes.
local set = {}
for i = 6, #ARGV, 2 do
  if ARGV[5] == "1" or call("HEXISTS", K.runtimes, ARGV[i]) == 0 then
    call("HSET", K.runtimes, ARGV[i], ARGV[i + 1])
    set[#set + 1] = ARGV[i]
  end
end
return set
