-- Strategy: best_fit's device. The name says what people rely on, the order: strictly by priority, then arrival.
local function score(view, taken) return taken[1] and -view.free[taken[1]] or 0 end

return { find = find_best, score = score }
