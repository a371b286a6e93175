-- Read a session and renew its lifetime.
--
-- KEYS     the session, its user's index if it has one
-- ARGV     the lifetime (ms), '' to leave it
-- Returns  all fields and values, none if there is no such session

local fields = call('HGETALL', KEYS[1])
if #fields == 0 then return fields end

-- Written even if nothing is renewed: a server that was demoted to a replica may hold sessions
-- that have ended meanwhile, and refuses the write.
local ttl = tonumber(ARGV[1]) or call('PTTL', KEYS[1])
if ttl > 0 then
  call('PEXPIRE', KEYS[1], text(ttl))
  if KEYS[2] then note(KEYS[2], KEYS[1], ttl) end
end
return fields
