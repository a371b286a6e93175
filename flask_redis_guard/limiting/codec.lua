-- What scripts store, after clock.lua.
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
local function expiry(microseconds)
  return format('%.0f', math.ceil(microseconds / 1000) + grace)
end
