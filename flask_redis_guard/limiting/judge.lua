-- Judges every rate of a request together and charges all of them or none.
--
-- KEYS     one for each rate
-- ARGV     the time ('' = the server's), grace of expiries in ms, 'hit' or 'peek';
--          for each rate: algorithm, limit, period (us), burst, cost, group
-- Group 0 is enforced. Any other group is a shadow: it is charged if all of it and of group 0 has
-- room, and keeps nothing else from being charged.
-- Returns  the time, then for each rate: has room (1 or 0), remaining, us until it is reset, us
--          until there is room for the cost, and two marks that a refund hands back
--
-- If the clock was set back, what is stamped later than now counts as stamped now: events are only
-- ever taken for younger than they are, so nothing above the limit is admitted, and a full period
-- later all is as before. That is stored also by a refusal, or it would move along with the clock.

local now, algorithms = clock(), {}

-- 'w': the sliding window above 16. Seventeen counters of a sixteenth of the period each, the
-- current one and the sixteen before it: index of the current (7), their sum (4), counters from
-- current to oldest (17 x 4). A counter leaves when none of its events can be within the period.

local function window_read(r)
  local width = r.period / 16
  local index = floor(now / width)
  r.ends, r.sum, r.newest = (index + 17) * width, 0, 0
  r.index, r.width, r.whole = index, width, true
  local s = call('GET', r.key)
  if s then
    if #s ~= 79 then error('not a sliding window: ' .. r.key) end
    local ahead = read7(s, 1) - index
    if ahead == 0 then
      r.whole, r.sum, r.newest, r.stored = false, read4(s, 8), read4(s, 12), s
    elseif ahead > 0 then
      if ahead > 16 then ahead = 16 end
      for i = 0, ahead do r.newest = r.newest + read4(s, 12 + 4 * i) end
      r.sum, r.moved, r.older = read4(s, 8), true, sub(s, 16 + 4 * ahead) .. ('\0\0\0\0'):rep(ahead)
    elseif ahead >= -16 then
      r.sum = read4(s, 8)
      for at = 80 + 4 * ahead, 76, 4 do r.sum = r.sum - read4(s, at) end
      r.older = ('\0\0\0\0'):rep(-ahead - 1) .. sub(s, 12, 79 + 4 * ahead)
    end
  end
  r.room = r.sum + r.cost <= r.limit
end

local function window_store(r, cost)
  local sum, newest = r.sum + cost, r.newest + cost
  if r.whole then
    call('SET', r.key, pack7(r.index) .. pack4(sum) .. pack4(newest) .. (r.older or ('\0'):rep(64)),
      'PX', expiry(r.ends - now))
  else -- the expiry depends on the index only, which stays
    call('SETRANGE', r.key, 7, pack4(sum) .. pack4(newest))
  end
end

local function window_take(r)
  window_store(r, r.cost)
  return r.limit - r.sum - r.cost, r.ends - now, r.index, 0
end

-- Microseconds until `excess` has left (the first of it that is younger than that stays).
local function window_leaves(r, excess)
  local older = r.older or (r.stored and sub(r.stored, 16)) or ('\0'):rep(64)
  for i = 16, 1, -1 do
    excess = excess - read4(older, 4 * i - 3)
    if excess <= 0 then return r.ends - i * r.width - now end
  end
  return r.ends - now
end

local function window_keep(r)
  if r.moved then window_store(r, 0) end
  local reset = r.sum > 0 and window_leaves(r, r.sum) or 0
  return r.limit - r.sum, reset, r.room and 0 or window_leaves(r, r.sum + r.cost - r.limit)
end

algorithms.w = { window_read, window_take, window_keep }

-- 'l': the sliding window up to 16. The times of all admissions within the period, 7 bytes each.

local function log_read(r)
  local s = call('GET', r.key) or ''
  local count, first = #s / 7, 1
  if #s % 7 ~= 0 then error('not a log of admissions: ' .. r.key) end
  while first <= count and read7(s, 7 * first - 6) <= now - r.period do first = first + 1 end
  s = sub(s, 7 * first - 6)
  count = count - first + 1
  local late = 0
  while late < count and read7(s, 7 * (count - late) - 6) > now do late = late + 1 end
  if late > 0 then
    r.moved, s = true, sub(s, 1, 7 * (count - late)) .. pack7(now):rep(late)
  end
  r.log, r.count = s, count
  r.room = count + r.cost <= r.limit
end

local function log_store(r, log)
  call('SET', r.key, log, 'PX', expiry(r.period))
end

local function log_take(r)
  log_store(r, r.log .. pack7(now):rep(r.cost))
  return r.limit - r.count - r.cost, r.period, now, 0
end

local function log_keep(r)
  if r.moved then log_store(r, r.log) end
  local reset, retry = 0, 0
  if r.count > 0 then reset = read7(r.log, 7 * r.count - 6) + r.period - now end
  if not r.room then retry = read7(r.log, 7 * (r.count + r.cost - r.limit) - 6) + r.period - now end
  return r.limit - r.count, reset, retry
end

algorithms.l = { log_read, log_take, log_keep }

-- 't': the token bucket as GCRA. Stored is the theoretical arrival time, when the bucket is full
-- again, in whole us (7) and 1/limit us (4), so that it is exact; then the us ever given back (7).

local function bucket_span(r, cost) -- the time in which `cost` flows in: cost * period / limit
  local rest = r.period % r.limit
  local parts = cost * rest
  local part = parts % r.limit
  return cost * ((r.period - rest) / r.limit) + (parts - part) / r.limit, part
end

local function bucket_later(r, time, part, cost)
  local span, more = bucket_span(r, cost)
  part = part + more
  if part >= r.limit then return time + span + 1, part - r.limit end
  return time + span, part
end

local function bucket_read(r)
  local time, part, returned = now, 0, 0
  local s = call('GET', r.key)
  if s then
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
  call('SET', r.key, pack7(time) .. pack4(part) .. pack7(r.returned), 'PX', expiry(r.latest + 1 - now))
end

local function bucket_remaining(r, time, part)
  local fits = function(n)
    local t, p = bucket_later(r, time, part, n)
    return t < r.latest or (t == r.latest and p <= r.latest_part)
  end
  local n = floor((r.latest - time) / r.period * r.limit) -- within one of the truth
  if n > r.burst then n = r.burst end
  while n > 0 and not fits(n) do n = n - 1 end
  while n < r.burst and fits(n + 1) do n = n + 1 end
  return n
end

local function bucket_reset(time, part)
  return time - now + (part > 0 and 1 or 0)
end

local function bucket_take(r)
  bucket_store(r, r.next, r.next_part)
  return bucket_remaining(r, r.next, r.next_part), bucket_reset(r.next, r.next_part), r.next, r.returned
end

local function bucket_keep(r)
  if r.moved then bucket_store(r, r.time, r.part) end
  local retry = 0
  if not r.room then
    retry = r.next - r.latest + (r.next_part > r.latest_part and 1 or 0)
  end
  return bucket_remaining(r, r.time, r.part), bucket_reset(r.time, r.part), retry
end

algorithms.t = { bucket_read, bucket_take, bucket_keep }

-- 'f': the fixed window, aligned to the Unix epoch: index of the window (7), count (4). A clock set
-- back by less than a window goes on with the window already begun.

local function fixed_read(r)
  r.index, r.count, r.whole = floor(now / r.period), 0, true
  local s = call('GET', r.key)
  if s then
    local ahead = read7(s, 1) - r.index
    if ahead == 0 or ahead == 1 then
      r.index, r.count, r.whole = r.index + ahead, read4(s, 8), false
    elseif ahead > 1 then
      r.count, r.moved = read4(s, 8), true
    end
  end
  r.ends = (r.index + 1) * r.period
  r.room = r.count + r.cost <= r.limit
end

local function fixed_store(r, count)
  if r.whole then
    call('SET', r.key, pack7(r.index) .. pack4(count), 'PX', expiry(r.ends - now))
  else
    call('SETRANGE', r.key, 7, pack4(count))
  end
end

local function fixed_take(r)
  fixed_store(r, r.count + r.cost)
  return r.limit - r.count - r.cost, r.ends - now, r.index, 0
end

local function fixed_keep(r)
  if r.moved then fixed_store(r, r.count) end
  local left = r.ends - now
  return r.limit - r.count, r.count > 0 and left or 0, r.room and 0 or left
end

algorithms.f = { fixed_read, fixed_take, fixed_keep }

local hit, rates, full, reply = ARGV[3] == 'hit', {}, {}, { now }
for i = 1, #KEYS do
  local at = 6 * i
  local r = {
    key = KEYS[i], algorithm = algorithms[ARGV[at - 2]], limit = tonumber(ARGV[at - 1]),
    period = tonumber(ARGV[at]), burst = tonumber(ARGV[at + 1]), cost = tonumber(ARGV[at + 2]),
    group = ARGV[at + 3],
  }
  r.algorithm[1](r)
  if not r.room then full[r.group] = true end
  rates[i] = r
end
for i = 1, #KEYS do
  local r, at = rates[i], 6 * i
  local remaining, reset, retry, mark, mark2 = 0, 0, 0, 0, 0
  if hit and not full['0'] and not full[r.group] then
    remaining, reset, mark, mark2 = r.algorithm[2](r)
  else
    -- A cost that never fits has no moment at which it would: the period stands for it.
    local never = r.cost > r.burst
    if never then r.room, r.cost = true, 0 end
    remaining, reset, retry = r.algorithm[3](r)
    if never then r.room, retry = false, r.period end
  end
  reply[at - 4], reply[at - 3], reply[at - 2] = r.room and 1 or 0, remaining, reset
  reply[at - 1], reply[at], reply[at + 1] = retry, mark, mark2
end
return reply
