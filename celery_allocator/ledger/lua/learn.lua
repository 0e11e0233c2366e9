-- Give a ledger back what it had learned: mean run times.
-- flags: allow-oom
-- uses: base runtimes
-- KEYS: prefix. ARGV from 5: overwrite ("1"|"0": what it has itself stays), then pairs of a task name ("*": all) and its
--   mean run time in ms. That counts as some runs of that length.
-- Reply: names whose mean was set. Touches: runtimes.
local set = {}
for i = 6, #ARGV, 2 do
  if ARGV[5] == "1" or call("HEXISTS", K.runtimes, ARGV[i]) == 0 then
    local mean = tonumber(ARGV[i + 1])
    call("HSET", K.runtimes, ARGV[i], cmsgpack.pack({ FEWEST, mean, bucket_of(mean), 1 }))
    set[#set + 1] = ARGV[i]
  end
end
return set
