-- Shared by all scripts; the others follow it in one text.
-- Times are whole microseconds, numbers big-endian bytes: 7 for a time or an index, 4 for a count.
-- Every number stays below 2^53, where a double holds each integer; see core/rates.py.
local byte, char, sub, floor, format = string.byte, string.char, string.sub, math.floor, string.format
local call = redis.call

-- The server's time, or what a test tells, and the milliseconds that a key outlives what it counts:
-- the server's expiry clock is coarser than the one it tells, and may lag by the length of a script.
local function clock(told)
  if told then return tonumber(told), 3600000 end
  local time = call('TIME')
  return time[1] * 1000000 + time[2], 1000
end

local function pack4(n)
  return char(floor(n / 16777216), floor(n / 65536) % 256, floor(n / 256) % 256, n % 256)
end

local function pack7(n)
  return char(floor(n / 281474976710656), floor(n / 1099511627776) % 256,
    floor(n / 4294967296) % 256, floor(n / 16777216) % 256, floor(n / 65536) % 256,
    floor(n / 256) % 256, n % 256)
end

local function read4(s, at)
  local a, b, c, d = byte(s, at, at + 3)
  return ((a * 256 + b) * 256 + c) * 256 + d
end

local function read7(s, at)
  local a, b, c, d, e, f, g = byte(s, at, at + 6)
  return (((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f) * 256 + g
end

-- An expiry in milliseconds, rounded up.
local function expiry(microseconds, grace)
  return format('%.0f', math.ceil(microseconds / 1000) + grace)
end
