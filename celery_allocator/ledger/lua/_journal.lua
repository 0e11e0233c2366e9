-- Library: the journal of operator actions. Touches: meta, journal, entry, once, answer, events.
-- A note says who acts and why; it is a JSON object: way ("do", or "undo"|"redo" with of, the entry), action, args, actor,
-- reason, source, batch (a label that actions taken together share, or ""), once (an idempotency key or ""), seen (how many actions the caller knew of when it decided; "": it does
-- not matter), keep (entries that are kept), keeps_place (a redo after which the entry stands among the others where it
-- stood before), final (the key stands for this step, and not for one that it needs before it), call (one per call: the
-- same one again is a call whose reply was lost, and gets that reply). Every action, undo and redo has a number of its own, `op`: an entry carries that of when it was done, its
-- place among the others, and that of when it was undone.
-- often: read_note refused journal answered
local ONCE = 604800000 -- ms for which an idempotency key is remembered: a week
local ANSWERED = 120000 -- ms for which a reply is remembered

local function read_note(text)
  if text and text ~= "" then return cjson.decode(text) end
end

-- Why the action cannot be taken now, or what it was answered when it was, as the script's reply; nil if it can be taken.
local function refused(note)
  if not note then return nil end
  local answer = call("GET", K.answer .. note.call)
  if answer then return cmsgpack.unpack(answer) end
  if note.once ~= "" then
    local entry = call("GET", K.once .. note.once)
    if entry then return { "duplicate", entry } end
  end
  if note.seen ~= "" and tonumber(note.seen) ~= tonumber(call("HGET", K.meta, "ops") or 0) then return { "moved" } end
  if note.way ~= "do" then
    local state = call("HGET", K.entry .. note.of, "state")
    if state ~= (note.way == "undo" and "done" or "undone") then return { "entry", state or "gone" } end
  end
end

-- Forget an entry. If it is in force, what was taken before it must not be undone any more, for it may stand on that: its
-- place is remembered. A damaged one may be in force whatever it says; where its place cannot be read, it is the last.
local function drop_entry(entry, damaged)
  local v = redis.pcall("HMGET", K.entry .. entry, "state", "done")
  if damaged or v.err or v[1] ~= "undone" then
    local place = not v.err and tonumber(v[2] or nil) or tonumber(call("HGET", K.meta, "ops") or 0)
    local last = tonumber(call("HGET", K.meta, "dropped") or 0)
    if place > last then call("HSET", K.meta, "dropped", place) end
  end
  call("ZREM", K.journal, entry)
  call("DEL", K.entry .. entry)
end

-- Write down what was done to `objects` (a list such as "node:n1", the first of them first in what is told of it). before,
-- after: tables. payload: what it takes to bring back what ended, or nil. Returns the entry's number, or "".
local function journal(note, objects, before, after, payload)
  if not note then return "" end
  local op = call("HINCRBY", K.meta, "ops", 1)
  local was, is = cjson.encode(before), cjson.encode(after)
  local entry, state = note.of, note.way == "undo" and "undone" or "done"
  if note.way == "do" then
    entry = tostring(call("HINCRBY", K.meta, "entries", 1))
    call("ZADD", K.journal, entry, entry)
    call("HSET", K.entry .. entry, "action", note.action, "args", cjson.encode(note.args), "objects", table.concat(objects, "\n"),
      "actor", note.actor, "reason", note.reason, "source", note.source, "batch", note.batch or "", "at", NOW, "done", op)
    for _, old in ipairs(call("ZRANGE", K.journal, 0, -1 - note.keep)) do drop_entry(old) end
  elseif note.way == "undo" then
    call("HSET", K.entry .. entry, "undone", op, "undone_at", NOW, "undone_by", note.actor, "undone_reason", note.reason)
  else
    if not note.keeps_place then call("HSET", K.entry .. entry, "done", op) end
    call("HSET", K.entry .. entry, "objects", table.concat(objects, "\n"))
    call("HDEL", K.entry .. entry, "undone", "undone_at", "undone_by", "undone_reason")
  end
  call("HSET", K.entry .. entry, "state", state)
  if note.way ~= "undo" then call("HSET", K.entry .. entry, "before", was, "after", is) end
  if payload then call("HSET", K.entry .. entry, "payload", payload) end
  if note.once ~= "" and note.final then call("SET", K.once .. note.once, entry, "PX", ONCE) end
  event("operated", objects[1], "", "entry", entry, "action", note.action, "actor", note.actor, "reason", note.reason,
    "source", note.source, "state", note.way == "do" and "done" or note.way .. "ne",
    "before", was, "after", is)
  return entry
end

-- The script's reply, remembered for the same call again: the client repeats one whose connection was cut.
local function answered(note, reply)
  if note then call("SET", K.answer .. note.call, cmsgpack.pack(reply), "PX", ANSWERED) end
  return reply
end

-- Everything of an allocation's record, for `restore`.
local function dump(id) return cmsgpack.pack(call("HGETALL", K.alloc .. id)) end
