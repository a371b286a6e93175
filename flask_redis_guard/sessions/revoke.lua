-- End all sessions of a user. Their keys have the hash tag of the index, and so its slot.
--
-- KEYS     the user's index
-- Returns  how many there were

local ended = 0
for _, key in ipairs(call('ZRANGE', KEYS[1], 0, -1)) do ended = ended + call('DEL', key) end
call('DEL', KEYS[1])
return ended
