-- Stop or resume granting on a node or one device.
-- flags: allow-oom
-- uses: base events cores index place line claim pass
-- KEYS: prefix. ARGV from 5: node or node/device, state (ready|cordoned|draining), publish ("1"|"0", as in release).
-- draining also takes back what was granted there and has not started.
-- Reply: {"ok", grants, ids still running there} | {"unknown"}. Touches: node, dev, events and all that pass touches.
local target, state = ARGV[5], ARGV[6]
local node = node_of(target) or target
local n = call("HMGET", K.node .. node, "devs")
if not n[1] then return { "unknown" } end
local dkeys = {}
if node == target then
  call("HSET", K.node .. node, "st", state)
  for _, device in ipairs(split(n[1])) do dkeys[#dkeys + 1] = node .. "/" .. device end
elseif call("EXISTS", K.dev .. target) == 1 then
  dkeys[1] = target
else
  return { "unknown" }
end
local running, grants = {}, {}
for _, dkey in ipairs(dkeys) do
  for _, id in ipairs(call("SMEMBERS", K.on .. dkey)) do
    local a = load_alloc(id)
    if state == "draining" and a.state == "granted" then
      take_back(id, a)
    else
      running[#running + 1] = id
    end
  end
  local d = load_device(dkey)
  d.st = state
  store_device(dkey, d)
end
event(state == "ready" and "uncordoned" or state, target, "")
if state ~= "cordoned" then pass_all(grants) end
if ARGV[7] == "0" then leave_to_tick(grants) end
return { "ok", grants, running }
