-- 'w': the sliding window above 16. Seventeen counters of a sixteenth of the period each, the
-- current one and the sixteen before it: index of the current (7), their sum (4), counters from
-- current to oldest (17 x 4). A counter leaves when none of its events can be within the period.

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
