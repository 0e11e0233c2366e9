-- Recompute everything from the allocations and report each difference.
-- flags: no-writes
-- uses: base cores index line tenants audit
-- KEYS: prefix. ARGV from 5: ids of all records there are (found by SCAN), so that those which nothing names count, too.
-- Reply: list of sentences; empty when the ledger is right. Touches: nothing (reads all).
local seen = {}
for _, node in ipairs(call("SMEMBERS", K.known)) do audit_node(node, seen) end
local lines, names, uses = {}, {}, {}
for _, name in ipairs(call("HKEYS", K.breakers)) do
  names[name] = true
  local left = call("HGET", K.breakers, name)
  check(tonumber(left), "the breaker of ", name, " holds ", left, ": that is no number")
end
for _, id in ipairs(every_id(5)) do
  if call("EXISTS", K.alloc .. id) == 1 then
    audit_record(id)
    local v = call("HMGET", K.alloc .. id, "state", "shape", "name", "pace", "tenant")
    local tenant, need = v[5] or "", v[2] and need_of(v[2])
    if need and (v[1] == "granted" or v[1] == "running") then
      local u = uses[tenant] or use_of("")
      u.g, u.c, u.r, u.n = u.g + need.g * (need.k or 1), u.c + need.c, u.r + need.r, u.n + 1
      uses[tenant] = u
    end
    if v[3] then names[v[3]] = true end
    if v[1] == "waiting" and v[2] then
      local lane = lane_of({ shape = v[2], pace = v[4], tenant = tenant })
      lines[lane] = (lines[lane] or 0) + 1
    end
    if seen[id] then check(call("ZSCORE", K.held, id), id, " is on a device, but does not count as held") end
  else
    check(false, id, " is named, and has no record")
  end
end
for _, id in ipairs(call("ZRANGE", K.held, 0, -1)) do
  check(seen[id], id, " counts as held, but no device lists it")
end
for name in pairs(names) do
  local aside = call("ZRANGE", K.aside .. name, 0, -1, "WITHSCORES")
  for i = 1, #aside, 2 do
    local v = call("HMGET", K.alloc .. aside[i], "state", "hold", "score")
    check(v[1] == "on_hold" and v[2] == "breaker", aside[i], " counts as set aside, and is not")
    eq(aside[i] .. " place among what is set aside", tonumber(aside[i + 1]), tonumber(v[3] or nil))
  end
end
local shapes, tenants = {}, {}
for lane, count in pairs(lines) do
  local shape, _, tenant = lane_parts(lane)
  shapes[shape], tenants[tenant] = (shapes[shape] or 0) + 1, true
  eq("length of line " .. lane, call("ZCARD", K.line .. lane), count)
  local head = call("ZRANGE", K.line .. lane, 0, 0, "WITHSCORES")
  eq("head of line " .. lane, call("ZSCORE", K.turn .. tenant, lane), head[2])
end
for shape, count in pairs(shapes) do eq("number of lines of shape " .. shape, tonumber(call("ZSCORE", K.shapes, shape) or 0), count) end
for _, shape in ipairs(call("ZRANGE", K.shapes, 0, -1)) do check(shapes[shape], "shape ", shape, " is listed, but nobody waits") end
for tenant in pairs(tenants) do check(call("SISMEMBER", K.queued, tenant) == 1, "tenant ", tenant, " waits, and is not listed") end
for _, tenant in ipairs(call("SMEMBERS", K.queued)) do
  check(tenants[tenant], "tenant ", tenant, " is listed as waiting, but nobody waits")
  for _, lane in ipairs(call("ZRANGE", K.turn .. tenant, 0, -1)) do check(lines[lane], "line ", lane, " is listed, but nobody waits") end
end
for _, tenant in ipairs(call("HKEYS", K.used)) do
  local u, is = uses[tenant] or use_of(""), use_of(call("HGET", K.used, tenant))
  for _, name in ipairs({ "g", "c", "r", "n" }) do eq("what tenant " .. tenant .. " uses (" .. name .. ")", is[name], u[name]) end
  uses[tenant] = nil
end
for tenant in pairs(uses) do check(false, "what tenant ", tenant, " uses is not counted") end
local all, is = { g = 0, c = 0, r = 0 }, call("HMGET", K.meta, "all_g", "all_c", "all_r")
for _, node in ipairs(call("SMEMBERS", K.known)) do
  local counted = call("HGET", K.node .. node, "counted")
  eq("what node " .. node .. " counts for (GPU memory, cores, RAM)", counted, offer_of(node))
  local u = use_of(counted)
  all.g, all.c, all.r = all.g + u.g, all.c + u.c, all.r + u.r
end
for i, name in ipairs({ "g", "c", "r" }) do eq("what all nodes offer (" .. name .. ")", tonumber(is[i] or 0), all[name]) end
local kept = reservation()
if kept then check(call("ZSCORE", K.waiting, kept.id), kept.id, " has a reservation, and does not wait") end
local indexed = { sched = 0, idle = 0 }
for _, node in ipairs(call("SMEMBERS", K.known)) do
  local fleet = fleet_of(load_node(node) or {})
  for at = 1, #fleet, 4 do
    local ix = index_of(fleet[at + 1], fleet[at + 3])
    if ix ~= "" then indexed[ix] = indexed[ix] + 1 end
  end
end
for ix, count in pairs(indexed) do
  local ordered = call("ZCARD", K.order .. ix .. ":cpu:0")
  for b = 0, BUCKETS do ordered = ordered + call("ZCARD", K.order .. ix .. ":gpu:" .. b) end
  eq("number of devices in " .. ix, call("ZCARD", K.index .. ix), count)
  eq("number of devices in the order of " .. ix, ordered, count)
end
local classes = {}
each_device(function(dkey)
  local class = call("HGET", K.dev .. dkey, "class") or ""
  if class ~= "" then classes[class] = (classes[class] or 0) + 1 end
end)
for class, count in pairs(classes) do eq("devices of class " .. class, tonumber(call("HGET", K.classes, class) or 0), count) end
for _, class in ipairs(call("HKEYS", K.classes)) do check(classes[class], "class ", class, " is counted, and no device has it") end
for _, number in ipairs(damaged_entries()) do check(false, "entry ", number, " of the journal is damaged") end
return audit_found
