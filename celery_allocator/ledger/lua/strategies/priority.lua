-- Strategy: best_fit's device. The name says what people rely on, the order: strictly by priority, then arrival.
local function score(_, devices) return -devices[1].free end

return { find = find_best, score = score }
