-- Strategy: the device with the most GPU memory left, then the node with most in all, then the first registered: an
-- even load. Its order is that of the index, from its end.
local function score(view, taken, need)
  local least = view.free[taken[1]] or 0
  for _, i in ipairs(taken) do least = math.min(least, view.free[i]) end
  return (least - need.g) * 8192 + view.c
end

return { find = find_emptiest, score = score }
