-- An operator decides about a parked message.
-- flags: allow-oom
-- uses: base events cores index line limits runtimes tenants dates claim breaker reserve place forecast pass
-- KEYS: prefix. ARGV from 5: id, what ("requeue": into line again under its old place; "discard": forgotten), publish
--   ("1"|"0", as in release).
-- Reply: {"ok", grants} | {"gone"} when nothing of that id is parked. Touches: parked, obits, alloc, tasks, tomb, events and
-- all that requeue and pass touch.
local id = ARGV[5]
if call("ZREM", K.parked, id) == 0 then return { "gone" } end
local a = load_alloc(id)
if not a then return { "gone" } end
local grants = {}
if ARGV[6] == "requeue" then
  call("ZREM", K.obits, id)
  call("HDEL", K.alloc .. id, "outcome", "reason")
  index_task(id, a.tid)
  event("requeued", id, a.tid, "name", a.name, "device", "", "token", a.tok, asked(id, a))
  requeue(id, a)
  pass_all(grants)
else
  event("discarded", id, a.tid, "name", a.name)
  -- Where its caller has not been told yet, the record goes when that is done (see settle).
  if not call("ZSCORE", K.obits, id) then forget(id, a, "parked") end
end
if ARGV[7] == "0" then leave_to_tick(grants) end
return { "ok", grants }
