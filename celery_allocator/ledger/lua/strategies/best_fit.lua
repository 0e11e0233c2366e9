-- Strategy: the device with the least GPU memory left, then the node with least in all, then the first registered.
-- Its order is that of the index: a placement looks at the first device that could do, mostly at no other.
local function score(view, taken) return taken[1] and -view.free[taken[1]] or 0 end

return { find = find_best, score = score }
