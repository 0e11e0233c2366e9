-- End an allocation that has not started (delayed, waiting or granted), or one made by hand.
-- flags: allow-oom
-- uses: base events cores index place line claim pass
-- KEYS: prefix. ARGV from 5: id, outcome ("cancelled"), publish ("1"|"0", as in release).
-- A task is buried: its result (REVOKED) is still to be written by the caller or the next tick, then settled.
-- Reply: {"ok", former state, task id, task name, message or "", grants} | {"running"} | {"gone"}
-- Touches: delayed, obits, events and all that claim, dequeue and pass touch.
local id, outcome = ARGV[5], ARGV[6]
local a = load_alloc(id)
if not a or a.state == "released" then return { "gone" } end
local by_hand = need_of(a.shape).kind == "m"
if a.state == "running" and not by_hand then return { "running" } end
local msg = not by_hand and call("HGET", K.alloc .. id, "msg") or ""
local grants = {}
if a.state == "delayed" then call("ZREM", K.delayed, id) end
if a.state == "waiting" then
  dequeue(id, a.shape)
  call("ZREM", K.manual, id)
end
local held = a.state == "granted" or a.state == "running"
local n = held and withdraw(id, a)
event("cancelled", id, a.tid, "name", a.name, "from", a.state, "outcome", outcome)
if by_hand then forget(id, a, outcome) else bury(id, a, outcome) end
if held then
  pass_node(n, grants)
  if by_hand then close_idle_node(node_of(a.dev)) end
end
if ARGV[7] == "0" then leave_to_tick(grants) end
return { "ok", a.state, a.tid, a.name, msg, grants }
