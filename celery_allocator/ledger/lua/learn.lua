-- Give a ledger back what it had learned about run times.
-- flags: allow-oom
-- uses: base runtimes
-- KEYS: prefix. ARGV from 5: overwrite ("1"|"0": what it has itself stays), weight of the newest run time (see release), then
--   threes of a task name ("*": all), "mean" or "runs", and ms: a mean, that counts as some runs of that length, or the run
--   times themselves, oldest first, with spaces between.
-- Reply: names that were set. Touches: runtimes.
local set, decay = {}, tonumber(ARGV[6])
for i = 7, #ARGV, 3 do
  if ARGV[5] == "1" or call("HEXISTS", K.runtimes, ARGV[i]) == 0 then
    local s = { 0, 0 }
    if ARGV[i + 1] == "mean" then
      local mean = tonumber(ARGV[i + 2])
      s = { FEWEST, mean, bucket_of(mean), 1 }
    else
      for ms in string.gmatch(ARGV[i + 2], "%S+") do s = absorb(s, tonumber(ms), decay) end
    end
    call("HSET", K.runtimes, ARGV[i], cmsgpack.pack(s))
    set[#set + 1] = ARGV[i]
  end
end
return set
