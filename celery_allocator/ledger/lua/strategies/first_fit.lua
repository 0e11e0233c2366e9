-- Strategy: the first registered device that fits, found by the sets in order of registration.
local function score() return 0 end

return { find = find_first, score = score }
