-- Library: a worker is gone. Touches: workers, worker, dev, on and all that withdraw, requeue and bury touch.
-- LOSSES: how often a repeatable task may lose its worker before it fails.

-- One running allocation lost its process: grant it again if it may be repeated, else record its end.
local function lose(id, a, lost)
  local n = withdraw(id, a)
  if a.late == "1" and a.loss < LOSSES then
    call("HINCRBY", K.alloc .. id, "loss", 1)
    event("lost", id, a.tid, "name", a.name, "device", a.dev, "token", a.tok, "again", 1)
    requeue(id, a)
  else
    event("lost", id, a.tid, "name", a.name, "device", a.dev, "token", a.tok, "again", 0)
    bury(id, a, "lost")
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
    if a and need_of(a.shape).kind == "t" and not kept[id] then
      if a.state == "running" then
        lose(id, a, lost)
      else
        take_back(id, a)
      end
    end
  end
  d = load_device(dkey)
  d.worker, d.inc, d.open, d.sfree, d.slots = "", "", "0", d.sfree - d.slots, 0
  store_device(dkey, d)
end

local function drop_worker(worker, lost, kept)
  local dkey = call("HGET", K.worker .. worker, "dkey")
  if dkey and call("HGET", K.dev .. dkey, "worker") == worker then detach(dkey, lost, kept or {}) end
  call("DEL", K.worker .. worker)
  call("ZREM", K.workers, worker)
end
