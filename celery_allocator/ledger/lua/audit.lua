-- A small part of verify, cheap enough for every tick: the next node, and the first of each line.
-- flags: allow-oom
-- uses: base events cores index line audit
-- KEYS: prefix. ARGV: the common ones only.
-- Reply: list of sentences; empty when that part is right. An event is left for what was not there at the last look.
-- Touches: meta (which node was looked at last), node (what was told of it), events.
local nodes = call("SMEMBERS", K.known)
table.sort(nodes)
local last, node = call("HGET", K.meta, "audited") or "", nodes[1]
for _, name in ipairs(nodes) do
  if name > last then node = name; break end
end
if node then
  call("HSET", K.meta, "audited", node)
  audit_node(node, {})
end
for _, key in ipairs({ K.held, K.granted, K.waiting, K.delayed }) do
  local id = call("ZRANGE", key, 0, 0)[1]
  if id then audit_record(id) end
end
local told = node and call("HGET", K.node .. node, "told")
if audit_found[1] and audit_found[1] ~= told then
  event("audit", node or "", "", "differences", #audit_found, "first", audit_found[1])
  if node then call("HSET", K.node .. node, "told", audit_found[1]) end
elseif told and not audit_found[1] then
  call("HDEL", K.node .. node, "told")
end
return audit_found
