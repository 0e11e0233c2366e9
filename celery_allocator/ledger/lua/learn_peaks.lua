-- Give a ledger back what it had learned about what the runs of a task use.
-- flags: allow-oom
-- uses: base runtimes peaks
-- KEYS: prefix. ARGV from 5: overwrite ("1"|"0": what it has itself stays), task name, size or "", what was declared last as
--   "GPU MB:RAM MB:thousandths of a core", then what each run used at most, in the same form, oldest first.
-- Reply: 1 if it was set, else 0. Touches: peaks.
local name, size = ARGV[6], ARGV[7]
local field = run_field(name, size)
if ARGV[5] ~= "1" and call("HEXISTS", K.peaks, field) == 1 then return 0 end
call("HDEL", K.peaks, field)
local declared, set = peaks_told(ARGV[8]) or {}, 0
for i = 9, #ARGV do
  local told = peaks_told(ARGV[i])
  if told then
    learn_peak(field, told, declared)
    set = 1
  end
end
return set
