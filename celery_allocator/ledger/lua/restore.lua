-- Bring back an allocation that an operator ended (or one made by hand whose making was undone), from its journal entry.
-- flags: allow-oom
-- uses: base events journal cores index line limits runtimes tenants dates claim breaker reserve place forecast pass
-- KEYS: prefix. ARGV from 5: id, publish ("1"|"0", as in release), note (see _journal; way is undo or redo).
-- What held a place gets the same one again: device, cores, memory; an unstarted task whose place is taken goes back into
-- line instead. What waited goes back under its old place in line. A new grant has a new token.
-- Reply: {"ok", state, grants, entry} | {"lost"} (the entry keeps no record) | {"alive", state} | {"expired"}
--   | {"taken", device, ids that hold it (none: it is not there any more)} | {"offline", device} | {"unsure", device} | {"damaged"}
--   | what _journal refuses with.
-- Touches: alloc, tomb, obits, parked, delayed, onhold, expires, manual, nodes, events, journal and all that claim and pass touch.
local id, note = ARGV[5], read_note(ARGV[7])
local no = refused(note)
if no then return no end
local packed = call("HGET", K.entry .. note.of, "payload")
if not packed then return { "lost" } end
local live = call("HGET", K.alloc .. id, "state")
if live and live ~= "released" then return { "alive", live } end
local ok, flat = pcall(cmsgpack.unpack, packed)
local was = {}
for i = 1, ok and type(flat) == "table" and #flat or 0, 2 do was[flat[i]] = flat[i + 1] end
local state, need = was.state, need_of(was.shape or "")
if not (state and need and was.tid and was.name and tonumber(was.score)) then return { "damaged" } end
if was.exp and state ~= "running" and tonumber(was.exp) <= now then return { "expired" } end
local held = state == "granted" or state == "running"
local cores = core_list(was.cores)
-- Every device that it held.
local on, among = split(was.devs or was.dev), {}
for _, dkey in ipairs(on) do among[dkey] = true end
if was.devs then need.on = on end

-- What of its old place is not free: "worker", "memory", "ram", or a list of cores; nil if all is. A device that is cordoned
-- since is no hindrance: it was held there before. But a task does not start on one that is emptied.
local function hindrance(d, n)
  local at = find_in(fleet_of(n), was.dev)
  if need.kind == "t" and (fleet_of(n)[at + 3] < 1 or d.worker == "" or d.open ~= "1" or d.st == "draining") then return "worker" end
  for _, dkey in ipairs(on) do if fleet_of(n)[find_in(fleet_of(n), dkey) + 2] < need.g then return "memory" end end
  if n.r < need.r then return "ram" end
  local busy
  for _, core in ipairs(cores) do
    if string.sub(n.map, core + 1, core + 1) ~= "1" then
      busy = busy or {}
      busy[core] = true
    end
  end
  return busy
end

-- Who holds it: ids.
local function holders(what)
  local ids, counted, node = {}, {}, node_of(was.dev)
  for _, device in ipairs(split(call("HGET", K.node .. node, "devs"))) do
    local dkey = node .. "/" .. device
    for _, other in ipairs((what ~= "memory" or among[dkey]) and call("SMEMBERS", K.on .. dkey) or {}) do
      local theirs, shares = load_alloc(other), false
      for _, core in ipairs(core_list(theirs and theirs.cores or "")) do shares = shares or type(what) == "table" and what[core] end
      if not counted[other] and (shares or type(what) ~= "table") then
        ids[#ids + 1] = other
        counted[other] = true
      end
    end
  end
  table.sort(ids)
  return ids
end

local d = held and load_device(was.dev)
local n = d and load_node(node_of(was.dev))
local away = held and not (d and d.live == "1")
for _, dkey in ipairs(held and not away and on or {}) do away = away or call("HGET", K.dev .. dkey, "live") ~= "1" end
-- After a change of the server others may hold what seems free, until every worker has reported (see _epoch).
local unsure = held and call("HEXISTS", K.meta, "paused") == 1
local what = held and not away and hindrance(d, n)
-- What a task's tenant holds by now may leave no room for it below the cap. One made by hand is an operator's to bring back.
local over = held and need.kind == "t" and capped(was.tenant or "", need) ~= nil
local free = held and not (away or unsure or what or over)
if not free and held and need.kind == "m" then
  if away then return { "offline", was.dev } end
  if unsure then return { "unsure", was.dev } end
  return { "taken", was.dev, holders(what) }
end

call("DEL", K.alloc .. id, K.tomb .. id)
call("ZREM", K.obits, id)
call("ZREM", K.parked, id)
call("HSET", K.alloc .. id, unpack(flat))
index_task(id, was.tid)
local a, grants = load_alloc(id), {}
if a.exp and state ~= "running" then call("ZADD", K.expires, a.exp, id) end
event("restored", id, a.tid, "name", a.name, "to", held and not free and "waiting" or state, asked(id, a))
if free then
  local token, text, placed = claim(id, was.dev, need, n, nil, cores)
  record_grant(id, a, was.dev, need, token, text, placed)
  if need.kind == "m" then call("ZADD", K.nodes, "XX", "GT", now + was.ttl, node_of(was.dev)) end
  if need.kind == "t" and not deliver(placed, token, was.msg or "") then grants[1] = { id, token, placed.queue, was.msg or "" } end
elseif held then
  requeue(id, a)
  pass_all(grants)
elseif state == "delayed" then
  call("ZADD", K.delayed, a.eta, id)
elseif state == "on_hold" then
  list_held(id, a, was.hold)
  if a.ttl then call("ZADD", K.manual, now + a.ttl, id) end
else
  if a.ttl then call("ZADD", K.manual, now + a.ttl, id) end
  place_or_wait(id, a, grants)
end
local becomes = call("HGET", K.alloc .. id, "state")
local entry = journal(note, { "allocation:" .. id }, { state = "released" }, { state = becomes, device = was.dev })
if ARGV[6] == "0" then leave_to_tick(grants) end
return answered(note, { "ok", becomes, grants, entry })
