-- A client has connected: is this still the run of the server that the ledger was on, and does it speak our schema?
-- flags: allow-oom
-- uses: base events index leases epoch
-- KEYS: prefix. ARGV from 5: schema that the client speaks, shortest pause ms.
-- Every connection asks this before anything else (see enter_run). A new ledger is marked with the schema.
-- Reply: {run id, schema}. Touches: meta, events and all that put_off and pause touch.
local schema = call("HGET", K.meta, "schema")
if not schema then
  schema = ARGV[5]
  call("HSET", K.meta, "schema", schema)
end
if schema ~= ARGV[5] then return { "", schema } end
return { enter_run(tonumber(ARGV[6])), schema }
