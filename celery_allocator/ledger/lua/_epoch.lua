-- Library: the run of the server, pause and resume. Touches: meta, workers, nodes, manual, worker (reads), dev, node, index,
-- order and all that a pass touches.
-- After a restart or a failover of the server the ledger may lack its last writes. Until every worker has reported what
-- it runs, or its lease is over, no device takes anything; so nothing is granted that somebody still holds.

local function server_run() return string.match(call("INFO", "server"), "run_id:(%x+)") end

local function reindex_all()
  each_device(function(dkey)
    local d = load_device(dkey)
    if d then store_device(dkey, d) end
  end)
end

-- Grant nothing before `til`, and not before the workers that are known have reported.
local function pause(til)
  call("HSET", K.meta, "paused", til)
  reindex_all()
  event("paused", "", "", "until", string.format("%.0f", til))
end

-- If this is another run of the server than the one that last wrote: tokens leap ahead of all that may have been given,
-- the time without a server does not count against leases, and granting pauses for `shortest` ms at least.
local function enter_run(shortest)
  local run = server_run()
  local v = call("HMGET", K.meta, "run", "alive")
  if v[1] == run then return run end
  call("HSET", K.meta, "run", run)
  if v[1] then
    -- More than can have been given in writes that were lost; small beside 2^40, which is one step of priority.
    call("HINCRBY", K.meta, "seq", 1048576)
    local alive = tonumber(v[2] or now)
    event("epoch", "", "", "run", run, "away_ms", now - alive)
    put_off(now - alive, alive)
    call("HSET", K.meta, "alive", now)
    if call("ZCARD", K.workers) > 0 then pause(now + shortest) end
  end
  return run
end

local function resume_if_reported(out)
  local v = call("HMGET", K.meta, "paused", "run")
  if not v[1] or now < tonumber(v[1]) then return end
  for _, worker in ipairs(call("ZRANGEBYSCORE", K.workers, now, "+inf")) do
    if call("HGET", K.worker .. worker, "run") ~= v[2] then return end
  end
  call("HDEL", K.meta, "paused")
  reindex_all()
  event("resumed", "", "")
  pass_all(out)
end
