-- 't': the token bucket as GCRA. Stored is the theoretical arrival time, when the bucket is full
-- again, in whole us (7) and 1/limit us (4), so that it is exact; then the us ever given back (7).

-- [judge]
-- The time at which `cost` more has flowed in: cost * period / limit later, in us and 1/limit us.
local function bucket_later(r, time, part, cost)
  local rest = r.period % r.limit
  local parts = cost * rest
  local more = parts % r.limit
  time, part = time + cost * ((r.period - rest) / r.limit) + (parts - more) / r.limit, part + more
  if part >= r.limit then return time + 1, part - r.limit end
  return time, part
end

local function bucket_read(r)
  local time, part, returned = now, 0, 0
  local s = call('GET', r.key)
  if s then
    if #s ~= 18 then error('not a token bucket: ' .. r.key) end
    time, part, returned = read7(s, 1), read4(s, 8), read7(s, 12)
    if time < now then time, part = now, 0 end
  end
  r.latest, r.latest_part = bucket_later(r, now, 0, r.burst)
  if time > r.latest or (time == r.latest and part > r.latest_part) then
    time, part, r.moved = r.latest, r.latest_part, true
  end
  r.time, r.part, r.returned = time, part, returned
  r.next, r.next_part = bucket_later(r, time, part, r.cost)
  r.room = r.next < r.latest or (r.next == r.latest and r.next_part <= r.latest_part)
end

local function bucket_store(r, time, part)
  -- Whatever is taken, the bucket is full again when a burst has flowed in. Not sooner, though the
  -- arrival time may be: an outstanding refund must not meet a key made anew.
  call('SET', r.key, pack7(time) .. pack4(part) .. pack7(r.returned), 'PX',
    expiry(r.latest + 1 - now))
end

local function bucket_fits(r, time, part, n)
  time, part = bucket_later(r, time, part, n)
  return time < r.latest or (time == r.latest and part <= r.latest_part)
end

local function bucket_remaining(r, time, part)
  local n = floor((r.latest - time) / r.period * r.limit) -- within one of the truth
  if n > r.burst then n = r.burst end
  while n > 0 and not bucket_fits(r, time, part, n) do n = n - 1 end
  while n < r.burst and bucket_fits(r, time, part, n + 1) do n = n + 1 end
  return n
end

local function bucket_reset(time, part)
  return time - now + (part > 0 and 1 or 0)
end

local function bucket_take(r)
  bucket_store(r, r.next, r.next_part)
  return format('1 %.0f %.0f 0 %.0f %.0f', bucket_remaining(r, r.next, r.next_part),
    bucket_reset(r.next, r.next_part), r.next, r.returned)
end

local function bucket_keep(r)
  if r.moved then bucket_store(r, r.time, r.part) end
  local retry = 0
  if not r.room then
    retry = r.next - r.latest + (r.next_part > r.latest_part and 1 or 0)
  end
  return bucket_remaining(r, r.time, r.part), bucket_reset(r.time, r.part), retry
end

algorithms[116] = { bucket_read, bucket_take, bucket_keep }

-- [refund]
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

refunds[116] = bucket_refund
