-- Bring back an allocation that an operator ended (or one made by hand whose making was undone), from its journal entry.
-- flags: allow-oom
-- uses: base events journal cores index place line claim breaker pass
-- KEYS: prefix. ARGV from 5: id, publish ("1"|"0", as in release), note (see _journal; way is undo or redo).
-- What held a place gets the same one again: device, cores, memory; an unstarted task whose place is taken goes back into
-- line instead. What waited goes back under its old place in line. A new grant has a new token.
-- Reply: {"ok", state, grants, entry} | {"lost"} (the entry keeps no record) | {"alive", state} | {"expired"}
--   | {"taken", device, ids that hold something there} | {"offline", device} | what _journal refuses with.
-- Touches: alloc, tomb, obits, parked, delayed, onhold, expires, manual, events, journal and all that claim and pass touch.
local id, note = ARGV[5], read_note(ARGV[7])
local no = refused(note)
if no then return no end
local packed = call("HGET", K.entry .. note.of, "payload")
if not packed then return { "lost" } end
local live = call("HGET", K.alloc .. id, "state")
if live and live ~= "released" then return { "alive", live } end
local flat, was = cmsgpack.unpack(packed), {}
for i = 1, #flat, 2 do was[flat[i]] = flat[i + 1] end
local state, need = was.state, need_of(was.shape)
if was.exp and state ~= "running" and tonumber(was.exp) <= now then return { "expired" } end
local held = state == "granted" or state == "running"
local cores = core_list(was.cores)

-- Whether its old place is free. A device that is cordoned since is no hindrance: it was held there before.
local function vacant(d, n, at)
  if fleet_of(n)[at + 2] < need.g or n.r < need.r then return false end
  if need.kind == "t" and (fleet_of(n)[at + 3] < 1 or d.worker == "" or d.open ~= "1") then return false end
  for _, core in ipairs(cores) do
    if string.sub(n.map, core + 1, core + 1) ~= "1" then return false end
  end
  return true
end

local d = held and load_device(was.dev)
local n = d and load_node(node_of(was.dev))
local free = d and d.live == "1" and vacant(d, n, find_in(fleet_of(n), was.dev))
if held and not free and need.kind == "m" then
  if not d or d.live ~= "1" then return { "offline", was.dev } end
  local ids = {}
  for _, device in ipairs(split(call("HGET", K.node .. node_of(was.dev), "devs"))) do
    for _, other in ipairs(call("SMEMBERS", K.on .. node_of(was.dev) .. "/" .. device)) do ids[#ids + 1] = other end
  end
  table.sort(ids)
  return { "taken", was.dev, ids }
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
  local token, text, on = claim(id, was.dev, need, n, nil, cores)
  record_grant(id, a, was.dev, need, token, text, on)
  if need.kind == "t" and not deliver(on, token, was.msg or "") then grants[1] = { id, token, on.queue, was.msg or "" } end
elseif held then
  requeue(id, a)
  pass_all(grants)
elseif state == "delayed" then
  call("ZADD", K.delayed, a.eta, id)
elseif state == "on_hold" then
  call("ZADD", K.onhold, now, id)
  if was.hold == "breaker" then call("ZADD", K.aside .. a.name, a.score, id) end
  if a.ttl then call("ZADD", K.manual, now + a.ttl, id) end
else
  if a.ttl then call("ZADD", K.manual, now + a.ttl, id) end
  place_or_wait(id, a, grants)
end
local becomes = call("HGET", K.alloc .. id, "state")
local entry = journal(note, { "allocation:" .. id }, { state = "released" }, { state = becomes, device = was.dev })
if ARGV[6] == "0" then leave_to_tick(grants) end
return { "ok", becomes, grants, entry }
