-- Gives back what judge.lua charged, as far as it still counts; never more, and nothing lives longer.
--
-- KEYS  one for each rate
-- ARGV  for each rate one string, big-endian: algorithm (1 byte), limit (4), period in us (7),
--       burst (4), cost (5), and the two marks of the charge (7 each)

local function window_refund(key, s, cost, index)
  local age = read7(s, 1) - index
  if age < 0 or age > 16 then return end -- set back since, or gone
  local at = 12 + 4 * age
  local count = read4(s, at)
  if cost > count then cost = count end
  call('SETRANGE', key, at - 1, pack4(count - cost))
  call('SETRANGE', key, 7, pack4(read4(s, 8) - cost))
end

local function log_refund(key, s, cost, time)
  local at, stamp, kept = #s - 6, pack7(time), s
  while at > 0 and cost > 0 do
    if sub(s, at, at + 6) == stamp then
      kept = sub(kept, 1, at - 1) .. sub(kept, at + 7)
      cost = cost - 1
    end
    at = at - 7
  end
  if kept == '' then
    call('DEL', key)
  elseif kept ~= s then
    call('SET', key, kept, 'KEEPTTL')
  end
end

-- Of a charge that filled the bucket's queue up to `mark`, at least what lies beyond now less what
-- others got back since has not flowed in yet. Giving back more could admit more than the burst.
local function bucket_refund(key, s, cost, mark, before, limit, period)
  local time, part, returned = read7(s, 1), read4(s, 8), read7(s, 12)
  local since = (returned - before) % 4503599627370496
  local left = mark - now - since
  if left <= 0 then return end
  local rest = period % limit
  local parts = cost * rest
  local less_part = parts % limit
  local less = cost * ((period - rest) / limit) + (parts - less_part) / limit
  if left < less or (left == less and less_part > 0) then less, less_part = left, 0 end
  time, part = time - less, part - less_part
  if part < 0 then time, part = time - 1, part + limit end
  returned = (returned + less + (less_part > 0 and 1 or 0)) % 4503599627370496 -- 2^52
  call('SETRANGE', key, 0, pack7(time) .. pack4(part) .. pack7(returned))
end

local function fixed_refund(key, s, cost, index)
  if read7(s, 1) ~= index then return end
  local count = read4(s, 8)
  call('SETRANGE', key, 7, pack4(cost < count and count - cost or 0))
end

local refunds = { w = window_refund, l = log_refund, t = bucket_refund, f = fixed_refund }
for i = 1, #KEYS do
  local a, s = ARGV[i], call('GET', KEYS[i])
  if s then
    refunds[sub(a, 1, 1)](KEYS[i], s, byte(a, 17) * 4294967296 + read4(a, 18), read7(a, 22), read7(a, 29),
      read4(a, 2), read7(a, 6))
  end
end
return ''
