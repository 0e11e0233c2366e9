-- Stop or resume granting on a node or one device.
-- flags: allow-oom
-- uses: base events journal cores index line limits runtimes tenants dates claim breaker reserve place forecast pass
-- KEYS: prefix. ARGV from 5: node or node/device, state (ready|cordoned|draining|restore), publish ("1"|"0", as in release),
--   note (see _journal) or "", the states to restore (JSON: node or node/device → state; a device that is not named gets its node's),
--   the reason where there is no note.
-- draining also takes back what was granted there and has not started. The note's reason stays with each device (`why`) until it
-- is ready again, and is told with the state; undone, the one that stood there before comes back (the entry keeps them as `whys`, JSON: node/device → why).
-- Reply: {"ok", grants, ids still running there, entry} | {"unknown"} | what _journal refuses with. Touches: node, dev, entry,
-- events, journal and all that pass touches.
local target, state, note = ARGV[5], ARGV[6], read_note(ARGV[8])
local no = refused(note)
if no then return no end
local node = node_of(target) or target
local n = call("HMGET", K.node .. node, "devs", "st")
if not n[1] then return { "unknown" } end
local wanted = state == "restore" and cjson.decode(ARGV[9]) or {}
local dkeys, objects, before, after = {}, {}, {}, {}
if node == target then
  for _, device in ipairs(split(n[1])) do dkeys[#dkeys + 1] = node .. "/" .. device end
  objects[1] = "node:" .. node
  before[node], after[node] = n[2], wanted[node] or state
  call("HSET", K.node .. node, "st", after[node])
elseif call("EXISTS", K.dev .. target) == 1 then
  dkeys[1] = target
else
  return { "unknown" }
end

local function tell(state, where, why)
  event(state == "ready" and "uncordoned" or state, where, "", "reason", why)
end
local reason, whys, earlier, reasons = note and note.reason or ARGV[10] or "", {}, {}, {}
if note and note.way ~= "do" then
  local kept = call("HMGET", K.entry .. note.of, "reason", "whys")
  reason = kept[1] or ""
  local ok, told = pcall(cjson.decode, note.way == "undo" and kept[2] or "")
  earlier = ok and type(told) == "table" and told or {}
end
local running, grants, opened, common = {}, {}, false, nil
for _, dkey in ipairs(dkeys) do
  local becomes = wanted[dkey] or after[node] or state
  objects[#objects + 1] = "device:" .. dkey
  local was = call("HMGET", K.dev .. dkey, "st", "why")
  before[dkey], after[dkey], whys[dkey] = was[1], becomes, was[2] or ""
  for _, id in ipairs(call("SMEMBERS", K.on .. dkey)) do
    local a = load_alloc(id)
    if becomes == "draining" and a and a.state == "granted" and need_of(a.shape or "") then
      take_back(id, a)
    else
      running[#running + 1] = id
    end
  end
  if becomes ~= "cordoned" then opened = true end
  local d = load_device(dkey) -- what was taken back is free on it now
  d.st = becomes
  store_device(dkey, d)
  local why = becomes == "ready" and "" or earlier[dkey] or note and note.way == "undo" and "" or reason
  reasons[dkey] = type(why) == "string" and why or ""
  if becomes == after[node] then common = common or reasons[dkey] end
  call("HSET", K.dev .. dkey, "why", reasons[dkey])
end
-- What is told of a node is so for all its devices, but for those of which something else is told after it.
common = common or after[node] ~= "ready" and reason or ""
if node == target then tell(after[node], node, common) end
for _, dkey in ipairs(dkeys) do
  if after[dkey] ~= after[node] or reasons[dkey] ~= common then tell(after[dkey], dkey, reasons[dkey]) end
end
local entry = journal(note, objects, before, after)
if note and note.way ~= "undo" then call("HSET", K.entry .. entry, "whys", cjson.encode(whys)) end
if opened then pass_all(grants) end
if ARGV[7] == "0" then leave_to_tick(grants) end
return answered(note, { "ok", grants, running, entry })
