-- Library: one entry in the capped stream per mutation. Touches: events.
-- The cap is approximate (~): trimming whole blocks costs next to nothing.
-- often: event
local function event(what, id, task, ...)
  call("XADD", K.events, "MAXLEN", "~", MAXLEN, "*", "event", what, "at", NOW, "id", id, "task", task, ...)
end
