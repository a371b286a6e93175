-- The beginning of every script. ARGV[1] is what is to be done; in tests a time follows it ('hit@17').
-- Times are whole microseconds, numbers big-endian bytes: 7 for a time or an index, 4 for a count.
-- Every number stays below 2^53, where a double holds each integer; see core/rates.py.
local byte, char, sub, floor, format = string.byte, string.char, string.sub, math.floor, string.format
local call = redis.call

-- Milliseconds that a key outlives what it counts: the server's expiry clock is coarser than the one
-- it tells, and may lag behind it by the length of a script.
local mode, now, grace = ARGV[1], nil, 1000
if #mode > 7 then
  mode, now = mode:match('^(%a+)@(%d+)$')
  now, grace = tonumber(now), 3600000
else
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
end
