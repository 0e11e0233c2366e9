-- Library: does what is counted agree with the allocations, and can the journal be read? Reads everything, writes nothing.

local audit_found = {}
-- Powers of two of free memory that order sets are made for: more than any device has.
local BUCKETS = 64
local function check(ok, ...) if not ok then audit_found[#audit_found + 1] = table.concat({ ... }) end end
local function eq(what, is, should) check(is == should, what, " is ", tostring(is), ", should be ", tostring(should)) end

-- One node against what its devices hold. seen: ids found on devices, added to.
local function audit_node(node, seen)
  local n = call("HMGET", K.node .. node, "own", "map", "cfree", "ram", "rfree", "devs", "wh")
  if not (n[1] and n[2] and n[4] and n[6]) then
    check(false, "the record of node ", node, " is not whole")
    return
  end
  local loaded = load_node(node)
  local ram, cores, fleet = 0, {}, fleet_of(loaded)
  local sized, mems = pcall(cmsgpack.unpack, loaded.mems or "")
  for _, device in ipairs(split(n[6])) do
    local dkey = node .. "/" .. device
    local at = find_in(fleet, dkey)
    local d = at and load_device(dkey)
    check(d, dkey, " is missing among the devices of its node")
    local mem, slots = 0, 0
    for _, id in ipairs(d and call("SMEMBERS", K.on .. dkey) or {}) do
      local v = call("HMGET", K.alloc .. id, "state", "shape", "dev", "cores", "devs")
      check(v[1] == "granted" or v[1] == "running", id, " on ", dkey, " has state ", tostring(v[1]))
      local need, first = v[2] and need_of(v[2]), v[3] == dkey
      local on = split(v[5] or v[3])
      local among = first
      for _, other in ipairs(on) do among = among or other == dkey end
      check(among, id, " device is ", tostring(v[5] or v[3]), ", should be ", dkey)
      seen[id] = true
      if need and not first then mem = mem + need.g end
      if need and first then
        eq(id .. " number of devices", #on, need.k)
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
    if d then
      eq(dkey .. " free memory", d.free, d.mem - mem - d.wh)
      eq(dkey .. " free slots", d.sfree, d.slots - slots)
      eq(dkey .. " memory as its node has it", sized and type(mems) == "table" and mems[(at + 3) / 4], d.mem)
      if d.worker ~= "" then
        eq("incarnation of " .. d.worker .. ", which serves " .. dkey, call("HGET", K.worker .. d.worker, "inc"), d.inc)
        check(call("ZSCORE", K.workers, d.worker), d.worker, ", which serves ", dkey, ", has no lease")
      end
      local mode = mode_of(d)
      eq(dkey .. " mode", fleet[at + 1], mode)
      local ix, kind = index_of(mode, d.sfree), kind_of(dkey)
      local member = d.ord .. "|" .. dkey
      for _, name in ipairs({ "sched", "idle" }) do
        local score = call("ZSCORE", K.index .. name, member)
        local should = ix == name and score_of(kind, d.free, gpu_free(fleet), tonumber(n[3])) or nil
        eq(dkey .. " score in " .. name, tonumber(score or nil), should)
        local ord = call("ZSCORE", K.order .. name .. ":" .. kind .. ":" .. bucket(kind, d.free), member)
        eq(dkey .. " order in " .. name, tonumber(ord or nil), ix == name and tonumber(d.ord) or nil)
      end
    end
  end
  eq(node .. " free RAM", tonumber(n[5]), tonumber(n[4]) - ram - (tonumber(n[7] or nil) or 0))
  eq(node .. " free cores", tonumber(n[3]), count_free(n[2]))
  for i = 1, #n[2] do
    local c, own = string.sub(n[2], i, i), string.sub(n[1], i, i)
    if c == "0" then check(cores[i - 1], "core ", i - 1, " of ", node, " is marked held, by nobody")
    else eq("core " .. (i - 1) .. " of " .. node, c, own == "" and "-" or own) end
  end
end

-- One record against every set that should name it, and those that should not.
local function audit_record(id)
  local v = call("HMGET", K.alloc .. id, "state", "shape", "dev", "tid", "exp", "eta", "score", "ttl", "tok",
    "hold", "name", "pace", "tenant", "devs")
  local state, by_hand = v[1], v[8]
  local held = state == "granted" or state == "running"
  local known = held or state == "waiting" or state == "delayed" or state == "on_hold" or state == "released"
  if not (known and v[2] and need_of(v[2]) and v[4]) then
    check(false, id, " has a record that is not whole (state ", tostring(state), ")")
    return
  end
  local function listed(what, key, should)
    local is = call("ZSCORE", key, id)
    check((is and true or false) == (should and true or false), id, " (", state, ") is ", is and "" or "not ", what)
    return is
  end
  local seq = tonumber(call("HGET", K.meta, "seq") or 0)
  check(tonumber(v[7]), id, " has a place in line that is no number (", tostring(v[7]), ")")
  check(state ~= "delayed" or tonumber(v[6]), id, " is delayed, and has no ETA")
  check((tonumber(v[9]) or 0) <= seq, id, " has token ", tostring(v[9]), ", and the last one given is ", seq)
  listed("held", K.held, held)
  listed("among the granted", K.granted, state == "granted")
  for _, dkey in ipairs(held and split(v[14] or v[3]) or {}) do
    check(call("SISMEMBER", K.on .. dkey, id) == 1, id, " is not among what ", dkey, " holds")
  end
  local score = listed("in line", K.waiting, state == "waiting")
  if state == "waiting" then
    eq(id .. " place in line", tonumber(score or nil), tonumber(v[7]))
    eq(id .. " place in its shape's line", tonumber(call("ZSCORE", K.line .. lane_of({ shape = v[2], pace = v[12], tenant = v[13] }), id) or nil), tonumber(v[7]))
  end
  listed("delayed", K.delayed, state == "delayed")
  listed("on hold", K.onhold, state == "on_hold")
  listed("set aside", K.aside .. (v[11] or ""), state == "on_hold" and v[10] == "breaker")
  listed("among what expires", K.expires, v[5] and (by_hand or (state ~= "running" and state ~= "released"))
    and call("ZSCORE", K.expires, id))
  if state == "released" then
    check(call("ZSCORE", K.obits, id) or call("ZSCORE", K.parked, id), id, " has ended, and nobody is to write its result")
  else
    local ids = "," .. (call("HGET", K.tasks, v[4]) or "") .. ","
    check(string.find(ids, "," .. id .. ",", 1, true), id, " is not among the allocations of its task ", v[4])
    if by_hand and state ~= "delayed" then listed("among those made by hand", K.manual, true) end
    if v[5] and state ~= "running" then listed("among what expires", K.expires, true) end
  end
end

-- Entries of the journal that cannot be read: a list of their numbers.
local function damaged_entries()
  local found = {}
  for _, number in ipairs(call("ZRANGE", K.journal, 0, -1)) do
    local v = redis.pcall("HMGET", K.entry .. number, "action", "objects", "at", "done", "state", "args", "before", "after")
    local ok = tonumber(number) and not v.err and v[1] and (v[2] or "") ~= "" and tonumber(v[3] or nil) and tonumber(v[4] or nil)
      and (v[5] == "done" or v[5] == "undone" and tonumber(call("HGET", K.entry .. number, "undone") or nil))
    for i = 6, 8 do
      local read, value = pcall(cjson.decode, ok and v[i] or "")
      ok = ok and read and type(value) == "table" and string.sub(v[i], 1, 1) == "{"
    end
    if not ok then found[#found + 1] = number end
  end
  return found
end

-- Every id that anything names, and every record: those of ARGV from `first`, which the client found by SCAN. Such a record
-- may have ended since then, which is no difference.
local function every_id(first)
  local ids, seen = {}, {}
  local function add(id)
    if not seen[id] then seen[id] = true; ids[#ids + 1] = id end
  end
  for _, key in ipairs({ K.held, K.granted, K.waiting, K.delayed, K.onhold, K.expires, K.manual, K.obits, K.parked }) do
    for _, id in ipairs(call("ZRANGE", key, 0, -1)) do add(id) end
  end
  for _, list in ipairs(call("HVALS", K.tasks)) do
    for id in string.gmatch(list, "[^,]+") do add(id) end
  end
  each_device(function(dkey)
    for _, id in ipairs(call("SMEMBERS", K.on .. dkey)) do add(id) end
  end)
  for i = first, #ARGV do
    if not seen[ARGV[i]] and call("EXISTS", K.alloc .. ARGV[i]) == 1 then add(ARGV[i]) end
  end
  return ids
end
