-- Read the first of some sessions that there is, and renew its lifetime.
--
-- KEYS     the sessions, behind each its user's index if it has one
-- ARGV     the lifetime (ms), '' to leave it
--          a letter for each key: 'k' a session, 'i' the index of the one before it
-- Returns  which session it is, counted from 1, and all its fields and values; none without one

local nth = 0
for n = 1, #KEYS do
  if ARGV[2]:sub(n, n) == 'k' then
    nth = nth + 1
    local fields = call('HGETALL', KEYS[n])
    if #fields > 0 then
      -- Written even if nothing is renewed: a server that was demoted to a replica may hold
      -- sessions that have ended meanwhile, and refuses the write.
      local ttl = tonumber(ARGV[1]) or call('PTTL', KEYS[n])
      if ttl > 0 then
        call('PEXPIRE', KEYS[n], text(ttl))
        if ARGV[2]:sub(n + 1, n + 1) == 'i' then note(KEYS[n + 1], KEYS[n], ttl) end
      end
      return {nth, fields}
    end
  end
end
return {}
