-- Create, change or rename a session.
--
-- KEYS     as ARGV[1] says
-- ARGV     a letter for each key: 'k' the session, 'i' its user's index,
--            'o' its key until now, if it is renamed, 'x' the index it is in until now
--          'new' (replaces what is there), or 'change' (only what is there)
--          the lifetime (ms), the most bytes a session may have, the most sessions of a user
--          '1' if all fields go that are not set here
--          how many fields are set, each with its value, then the fields that are removed
-- Returns  1 saved, 2 nothing was left and so it is gone, 0 there was no such session, -1 too large

local role = {}
for n = 1, #KEYS do role[ARGV[1]:sub(n, n)] = KEYS[n] end
local key, until_now = role.k, role.o or role.k
local new, ttl, sets = ARGV[2] == 'new', tonumber(ARGV[3]), tonumber(ARGV[7])
local wipe = new or ARGV[6] == '1'
local removed = 8 + 2 * sets

if not new and call('HEXISTS', until_now, 'v') == 0 then return 0 end

local sizes, size = {}, 0
if not wipe and sets > 0 then
  local fields = call('HGETALL', until_now)
  for n = 1, #fields, 2 do sizes[fields[n]] = #fields[n] + #fields[n + 1] end
end
for n = 8, removed - 1, 2 do sizes[ARGV[n]] = #ARGV[n] + #ARGV[n + 1] end
sizes.v = nil
for n = removed, #ARGV do sizes[ARGV[n]] = nil end
for _, bytes in pairs(sizes) do size = size + bytes end
if sets > 0 and size > tonumber(ARGV[4]) then return -1 end

-- The first write of a script is the one that a server short of memory refuses, and nothing is
-- undone afterwards. So it is one that such a server refuses, and that changes nothing. What only
-- removes is let through.
if new or sets > 0 then call('HSET', until_now, 'v', '1') end

if role.o then
  call('RENAME', role.o, key)
  if role.x then call('ZREM', role.x, role.o) end
end
if wipe then
  call('DEL', key)
  call('HSET', key, 'v', '1')
end
for n = 8, removed - 1, 2 do call('HSET', key, ARGV[n], ARGV[n + 1]) end
for n = removed, #ARGV do call('HDEL', key, ARGV[n]) end

if not new and call('HLEN', key) == 1 then
  call('DEL', key)
  if role.i then call('ZREM', role.i, key) end
  return 2
end
call('PEXPIRE', key, text(ttl))
if role.i then
  if not call('ZSCORE', role.i, key) then make_room(role.i, tonumber(ARGV[5])) end
  note(role.i, key, ttl)
end
return 1
