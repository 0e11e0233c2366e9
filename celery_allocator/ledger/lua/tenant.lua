-- Say what a tenant's turns are worth and how much it may hold, or forget that.
-- flags: allow-oom
-- uses: base events journal cores index line limits runtimes tenants dates claim breaker reserve place forecast pass
-- KEYS: prefix. ARGV from 5: tenant, quota (JSON: weight, gpu_memory_mb, cpu_cores, ram_mb, tasks, by; "": none), publish
--   ("1"|"0", as in release), note (see _journal) or "", "1" if it comes from settings: it does not replace what an operator said.
-- What it holds already stays.
-- Reply: {"ok", former quota (JSON) or "", grants, entry} | {"kept", quota (JSON)} | what _journal refuses with.
-- Touches: quotas, events, journal and all that pass touches.
local tenant, quota, note = ARGV[5], ARGV[6], read_note(ARGV[8])
local no = refused(note)
if no then return no end
local was = call("HGET", K.quotas, tenant) or ""
if ARGV[9] == "1" then
  local ok, q = pcall(cjson.decode, was)
  if was == quota or (ok and type(q) == "table" and q.by == "operator") then return { "kept", was } end
end
if quota == "" then call("HDEL", K.quotas, tenant) else call("HSET", K.quotas, tenant, quota) end
event("tenant", tenant, "", "quota", quota)
local entry = journal(note, { "tenant:" .. tenant }, { quota = was }, { quota = quota })
local grants = {}
pass_all(grants)
if ARGV[7] == "0" then leave_to_tick(grants) end
return answered(note, { "ok", was, grants, entry })
