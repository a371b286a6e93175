-- The beginning of every script.
-- Times are whole microseconds, numbers big-endian bytes: 7 for a time or an index, 4 for a count.
-- Every number stays below 2^53, where a double holds each integer; see core/rates.py.
local byte, char, sub, floor, format = string.byte, string.char, string.sub, math.floor, string.format
local call = redis.call

-- [time] tests put another clock here
-- Milliseconds that a key outlives what it counts: the server's expiry clock is coarser than the one
-- it tells, and may lag behind it by the length of a script.
local time, grace = call('TIME'), 1000
local now = time[1] * 1000000 + time[2]
-- [end]
