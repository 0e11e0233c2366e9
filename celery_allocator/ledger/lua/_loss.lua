-- Library: a worker is gone, or not there yet. Touches: workers, worker, dev, on and all that withdraw, requeue and bury touch.
-- LOSSES: how often a repeatable task may lose its worker before it fails.

-- One running allocation lost its process: grant it again if it may be repeated, else record its end.
local function lose(id, a, lost)
  local n, need = withdraw(id, a), need_of(a.shape)
  if affine(need) then cool(a.dev, need.warm) end
  if a.late == "1" and a.loss < LOSSES then
    call("HINCRBY", K.alloc .. id, "loss", 1)
    event("lost", id, a.tid, "name", a.name, "device", a.dev, "token", a.tok, "again", 1)
    requeue(id, a)
  else
    event("lost", id, a.tid, "name", a.name, "device", a.dev, "token", a.tok, "again", 0)
    unindex_task(id, a.tid)
    -- A retry of it lives on under the same task id, and will write the result.
    if call("HEXISTS", K.tasks, a.tid) == 1 then forget(id, a, "lost") else bury(id, a, "lost") end
    lost[#lost + 1] = id
  end
  return n
end

-- Take a worker from its device: running tasks are lost, but for those whose id is in `kept`; unstarted grants go back into
-- line.
local function detach(dkey, lost, kept)
  local d = load_device(dkey)
  if not d then return end
  for _, id in ipairs(call("SMEMBERS", K.on .. dkey)) do
    local a = load_alloc(id)
    local need = a and a.shape and need_of(a.shape) -- a damaged record is left to verify
    -- One on several GPUs runs with the worker of the first.
    if need and need.kind == "t" and a.dev == dkey and not kept[id] then
      if a.state == "running" then
        lose(id, a, lost)
      else
        take_back(id, a)
      end
    end
  end
  d = load_device(dkey)
  -- Unless its successor has measured already.
  if d.whby == d.inc then unwithhold(dkey, d) end
  d.worker, d.inc, d.open, d.sfree, d.slots = "", "", "0", d.sfree - d.slots, 0
  store_device(dkey, d)
  chill(dkey)
end

local function drop_worker(worker, lost, kept)
  local dkey = call("HGET", K.worker .. worker, "dkey")
  if dkey and call("HGET", K.dev .. dkey, "worker") == worker then detach(dkey, lost, kept or {}) end
  call("DEL", K.worker .. worker)
  call("ZREM", K.workers, worker)
end

-- What counts as running on a device, and its worker does not know (it runs what is in `kept`), has ended without the ledger
-- hearing of it: it is buried, so that its result is written if nobody has.
local function end_unreported(dkey, kept)
  for _, id in ipairs(call("SMEMBERS", K.on .. dkey)) do
    local a = load_alloc(id)
    local need = a and a.shape and need_of(a.shape)
    if need and need.kind == "t" and a.dev == dkey and a.state == "running" and not kept[id] then
      withdraw(id, a)
      event("released", id, a.tid, "name", a.name, "device", dkey, "token", a.tok, "outcome", "unreported")
      unindex_task(id, a.tid)
      -- A retry of it lives on under the same task id, and will write the result.
      if call("HEXISTS", K.tasks, a.tid) == 1 then forget(id, a, "unreported") else bury(id, a, "unreported") end
    end
  end
end
