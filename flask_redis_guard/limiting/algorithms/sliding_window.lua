-- 'w': the sliding window above 16. Seventeen counters of a sixteenth of the period each, the
-- current one and the sixteen before it: index of the current (7), their sum (4), counters from
-- current to oldest (17 x 4). A counter leaves when none of its events can be within the period.

-- [express]
-- What it earns, by RateLimiter.hit: 25 us instead of 28 with one rate, 32 instead of 37 with three.
-- The common case of sliding windows alone: every one has room, and is still in the sub-window that
-- its counters are of. Straight on, without a function made; all else is for what follows. Where
-- every one has room, groups make no difference.

if byte(ARGV[1]) == 104 then
  local counts, reply = {}, {}
  for i = 1, #KEYS do
    local s = call('GET', KEYS[i])
    if not s or #s ~= 79 then break end
    local l1, l2, l3, l4, p1, p2, p3, p4, p5, p6, p7, _, _, _, _, c1, c2, c3, c4, c5 =
      byte(ARGV[1], 23 * i - 20, 23 * i - 1)
    local i1, i2, i3, i4, i5, i6, i7, s1, s2, s3, s4, n1, n2, n3, n4 = byte(s, 1, 15)
    local width = ((((((p1 * 256 + p2) * 256 + p3) * 256 + p4) * 256 + p5) * 256 + p6) * 256 + p7) / 16
    local index = (((((i1 * 256 + i2) * 256 + i3) * 256 + i4) * 256 + i5) * 256 + i6) * 256 + i7
    local cost = (((c1 * 256 + c2) * 256 + c3) * 256 + c4) * 256 + c5
    local sum = ((s1 * 256 + s2) * 256 + s3) * 256 + s4 + cost
    local newest = ((n1 * 256 + n2) * 256 + n3) * 256 + n4 + cost
    local room = ((l1 * 256 + l2) * 256 + l3) * 256 + l4 - sum
    local left = (index + 1) * width - now
    if left <= 0 or left > width or room < 0 then break end
    counts[i] = char((sum - sum % 16777216) / 16777216, (sum - sum % 65536) / 65536 % 256,
      (sum - sum % 256) / 256 % 256, sum % 256, (newest - newest % 16777216) / 16777216,
      (newest - newest % 65536) / 65536 % 256, (newest - newest % 256) / 256 % 256, newest % 256)
    reply[i] = format('1 %d %d 0 %d 0', room, left + 16 * width, index)
  end
  if #reply == #KEYS then
    for i = 1, #KEYS do call('SETRANGE', KEYS[i], 7, counts[i]) end
    return table.concat(reply, ' ')
  end
end

-- [judge]
local function window_read(r)
  local width = r.period / 16
  local index = floor(now / width)
  r.ends, r.width, r.index, r.newest = (index + 17) * width, width, index, 0
  local s = call('GET', r.key)
  if s then
    if #s ~= 79 then error('not a sliding window: ' .. r.key) end
    local ahead = read7(s, 1) - index
    if ahead == 0 then
      r.whole, r.count, r.newest, r.stored = false, read4(s, 8), read4(s, 12), s
    elseif ahead > 0 then
      if ahead > 16 then ahead = 16 end
      for i = 0, ahead do r.newest = r.newest + read4(s, 12 + 4 * i) end
      r.count, r.moved, r.older = read4(s, 8), true, sub(s, 16 + 4 * ahead) .. ('\0\0\0\0'):rep(ahead)
    elseif ahead >= -16 then
      r.count = read4(s, 8)
      for at = 80 + 4 * ahead, 76, 4 do r.count = r.count - read4(s, at) end
      r.older = ('\0\0\0\0'):rep(-ahead - 1) .. sub(s, 12, 79 + 4 * ahead)
    end
  end
  r.room = r.count + r.cost <= r.limit
end

local function window_store(r, cost)
  local sum, newest = r.count + cost, r.newest + cost
  if r.whole then
    call('SET', r.key, pack7(r.index) .. pack4(sum) .. pack4(newest) .. (r.older or ('\0'):rep(64)), 'PX',
      expiry(r.ends - now))
  else -- the expiry depends on the index only, which stays
    call('SETRANGE', r.key, 7, pack4(sum) .. pack4(newest))
  end
end

local function window_take(r)
  window_store(r, r.cost)
  return format('1 %.0f %.0f 0 %.0f 0', r.limit - r.count - r.cost, r.ends - now, r.index)
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
  local reset = r.count > 0 and window_leaves(r, r.count) or 0
  return r.limit - r.count, reset, r.room and 0 or window_leaves(r, r.count + r.cost - r.limit)
end

algorithms[119] = { window_read, window_take, window_keep }

-- [refund]
local function window_refund(key, s, cost, index)
  local age = read7(s, 1) - index
  if age < 0 or age > 16 then return end -- set back since, or gone
  local at = 12 + 4 * age
  local count = read4(s, at)
  if cost > count then cost = count end
  call('SETRANGE', key, at - 1, pack4(count - cost))
  call('SETRANGE', key, 7, pack4(read4(s, 8) - cost))
end

refunds[119] = window_refund
