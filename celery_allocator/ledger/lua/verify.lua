-- Recompute everything from the allocations and report each difference.
-- flags: no-writes
-- uses: base cores index line
-- KEYS: prefix. ARGV: the common ones only.
-- Reply: list of sentences; empty when the ledger is right. Touches: nothing (reads all).
local bad = {}
local function check(ok, ...) if not ok then bad[#bad + 1] = table.concat({ ... }) end end
local function eq(what, is, should) check(is == should, what, " is ", tostring(is), ", should be ", tostring(should)) end

local seen_held, known_dkeys = {}, {}
for _, node in ipairs(call("SMEMBERS", K.known)) do
  local n = call("HMGET", K.node .. node, "own", "map", "cfree", "ram", "rfree", "devs")
  local ram, cores = 0, {}
  for _, device in ipairs(split(n[6])) do
    local dkey = node .. "/" .. device
    known_dkeys[dkey] = true
    local d = load_device(dkey)
    local mem, slots = 0, 0
    for _, id in ipairs(call("SMEMBERS", K.on .. dkey)) do
      local v = call("HMGET", K.alloc .. id, "state", "shape", "dev", "cores")
      check(v[1] == "granted" or v[1] == "running", id, " on ", dkey, " has state ", tostring(v[1]))
      eq(id .. " device", v[3], dkey)
      seen_held[id] = true
      if v[2] then
        local need = need_of(v[2])
        mem, ram = mem + need.g, ram + need.r
        if need.kind == "t" then slots = slots + 1 end
        local ids = core_list(v[4])
        eq(id .. " number of cores", #ids, need.c)
        for _, core in ipairs(ids) do
          check(not cores[core], "core ", core, " of ", node, " is held by ", tostring(cores[core]), " and ", id)
          cores[core] = id
          eq("core " .. core .. " of " .. node, string.sub(n[2], core + 1, core + 1), "0")
        end
      end
    end
    eq(dkey .. " free memory", d.free, d.mem - mem)
    eq(dkey .. " free slots", d.sfree, d.slots - slots)
    local mode = mode_of(d)
    local fleet = fleet_of(load_node(node))
    eq(dkey .. " mode", fleet[find_in(fleet, dkey) + 1], mode)
    local ix, kind = index_of(mode, d.sfree), kind_of(dkey)
    local member = d.ord .. "|" .. dkey
    for _, name in ipairs({ "sched", "idle" }) do
      local score = call("ZSCORE", K.index .. name, member)
      local should = ix == name and score_of(kind, d.free, tonumber(n[3])) or nil
      eq(dkey .. " score in " .. name, tonumber(score or nil), should)
      local ord = call("ZSCORE", K.order .. name .. ":" .. kind .. ":" .. bucket(kind, d.free), member)
      eq(dkey .. " order in " .. name, tonumber(ord or nil), ix == name and tonumber(d.ord) or nil)
    end
  end
  eq(node .. " free RAM", tonumber(n[5]), tonumber(n[4]) - ram)
  eq(node .. " free cores", tonumber(n[3]), count_free(n[2]))
  for i = 1, #n[2] do
    local c, own = string.sub(n[2], i, i), string.sub(n[1], i, i)
    if c == "0" then check(cores[i - 1], "core ", i - 1, " of ", node, " is marked held, by nobody")
    else eq("core " .. (i - 1) .. " of " .. node, c, own == "" and "-" or own) end
  end
end
for _, id in ipairs(call("ZRANGE", K.held, 0, -1)) do
  check(seen_held[id], id, " counts as held, but no device lists it")
  seen_held[id] = nil
end
for id in pairs(seen_held) do check(false, id, " is on a device, but does not count as held") end
for _, id in ipairs(call("ZRANGE", K.granted, 0, -1)) do
  eq(id .. " (granted set) state", call("HGET", K.alloc .. id, "state"), "granted")
end
local lines = {}
for _, id in ipairs(call("ZRANGE", K.waiting, 0, -1)) do
  local v = call("HMGET", K.alloc .. id, "state", "shape")
  eq(id .. " (in line) state", v[1], "waiting")
  if v[2] then
    lines[v[2]] = (lines[v[2]] or 0) + 1
    check(call("ZSCORE", K.line .. v[2], id), id, " is missing from its shape's line")
  end
end
for shape, count in pairs(lines) do
  eq("length of line " .. shape, call("ZCARD", K.line .. shape), count)
  local head = call("ZRANGE", K.line .. shape, 0, 0, "WITHSCORES")
  eq("head of line " .. shape, call("ZSCORE", K.shapes, shape), head[2])
end
for _, shape in ipairs(call("ZRANGE", K.shapes, 0, -1)) do check(lines[shape], "shape ", shape, " is listed, but nobody waits") end
for _, id in ipairs(call("ZRANGE", K.delayed, 0, -1)) do
  eq(id .. " (delayed set) state", call("HGET", K.alloc .. id, "state"), "delayed")
end
return bad
