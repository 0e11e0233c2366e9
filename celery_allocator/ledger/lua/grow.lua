-- A running task ran out of GPU memory: what it holds is given back, and it is in line again under its old place, with a
-- larger claim.
-- flags: allow-oom
-- uses: base events cores index line limits runtimes tenants dates claim breaker reserve place forecast pass never
-- KEYS: prefix. ARGV from 5: id, token, by what its GPU memory is multiplied, how often that may be done, publish ("1"|"0", as
--   in release).
-- It asks for what the largest device that could hold it has at most, and for what its tenant may ever hold.
-- Reply: {"ok", grants, MB of each GPU before, MB now, how often} | {"spent", how often} | {"largest", MB} | {"no_gpu"}
-- | {"gone", outcome or ""} | {"stale", live token} | {"not_running", state}
-- Touches: alloc, events and all that withdraw, requeue and pass touch.
local id, token, growth, most = ARGV[5], ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local a = load_alloc(id)
if not a then return { "gone", call("GET", K.tomb .. id) or "" } end
if a.state == "released" then return { "gone", "buried" } end
if token ~= a.tok then return { "stale", a.tok } end
local need = need_of(a.shape)
if a.state ~= "running" or need.kind ~= "t" then return { "not_running", a.state } end
if need.g == 0 then return { "no_gpu" } end
local times = tonumber(call("HGET", K.alloc .. id, "oom") or "0")
if times >= most then return { "spent", times } end

-- Its shape with g MB of each GPU. Of one that asks for a share, at least so many.
local function grown_to(g) return shape_of(g, need.c, need.r, need.kind, need.k, need.more) end
local function possible(g) return not never(need_of(grown_to(g))) end

local g = math.max(need.g + 1, math.ceil(need.g * growth))
local dimension, cap = capped(a.tenant, need_of(grown_to(g)), use_of(""))
if dimension == "gpu_memory_mb" then g = floor(cap / need.k) end
if not possible(g) then
  local largest = 0
  for _, class in ipairs(call("HKEYS", K.classes)) do
    local mb = tonumber(string.match(class, "%d+"))
    if mb < g and mb > largest and possible(mb) then largest = mb end
  end
  g = largest
end
if g <= need.g then return { "largest", need.g } end

withdraw(id, a)
a.shape, a.asked = grown_to(string.format("%.0f", g)), nil
call("HSET", K.alloc .. id, "shape", a.shape, "oom", times + 1)
call("HDEL", K.alloc .. id, "asked")
event("grown", id, a.tid, "name", a.name, "device", a.dev, "token", a.tok, "from", need.g, "to", g, "shape", a.shape,
  "oom_retries", times + 1)
requeue(id, a)
local grants = {}
pass_all(grants)
if ARGV[9] == "0" then leave_to_tick(grants) end
return { "ok", grants, need.g, g, times + 1 }
