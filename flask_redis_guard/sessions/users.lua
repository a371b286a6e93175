-- Stands before the other scripts: the index of a user's sessions, a sorted set of their keys by the
-- time at which they expire (ms).

local call = redis.call

local function text(n) return string.format('%.0f', n) end

local function now()
  local time = call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Note that a session lives for another ttl ms. The index outlives the last of them by a second.
local function note(index, key, ttl)
  call('ZADD', index, text(now() + ttl), key)
  if call('PTTL', index) < ttl + 1000 then call('PEXPIRE', index, text(ttl + 1000)) end
end

-- Make room for one more: forget what has expired, and end what expires soonest.
local function make_room(index, limit)
  call('ZREMRANGEBYSCORE', index, '-inf', text(now()))
  local over = call('ZCARD', index) - (limit - 1)
  if over <= 0 then return end
  for _, key in ipairs(call('ZRANGE', index, 0, over - 1)) do call('DEL', key) end
  call('ZREMRANGEBYRANK', index, 0, over - 1)
end
