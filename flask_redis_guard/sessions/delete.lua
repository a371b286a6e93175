-- End a session.
--
-- KEYS     the session, its user's index if it has one
-- Returns  what its fields and values were, none if there was no such session

local fields = call('HGETALL', KEYS[1])
call('DEL', KEYS[1])
if KEYS[2] then call('ZREM', KEYS[2], KEYS[1]) end
return fields
