-- A small part of verify, cheap enough for every tick: the next node, and the first of each line.
-- flags: allow-oom
-- uses: base events cores index line audit
-- KEYS: prefix. ARGV: the common ones only.
-- Reply: list of sentences; empty when that part is right. Touches: meta (which node was looked at last), events.
local nodes = call("SMEMBERS", K.known)
table.sort(nodes)
local last, node = call("HGET", K.meta, "audited") or "", nodes[1]
for _, name in ipairs(nodes) do
  if name > last then node = name; break end
end
if node then
  audit_node(node, {})
  call("HSET", K.meta, "audited", node)
end
for _, key in ipairs({ K.held, K.granted, K.waiting, K.delayed }) do
  local id = call("ZRANGE", key, 0, 0)[1]
  if id then audit_record(id) end
end
if #audit_found > 0 then
  event("audit", node or "", "", "differences", #audit_found, "first", audit_found[1])
end
return audit_found
