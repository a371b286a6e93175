-- 'f': the fixed window, aligned to the Unix epoch: index of the window (7), count (4). A clock set
-- back by less than a window goes on with the window already begun.

-- [judge]
local function fixed_read(r)
  r.index = floor(now / r.period)
  local s = call('GET', r.key)
  if s then
    if #s ~= 11 then error('not a fixed window: ' .. r.key) end
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
  return format('1 %.0f %.0f 0 %.0f 0', r.limit - r.count - r.cost, r.ends - now, r.index)
end

local function fixed_keep(r)
  if r.moved then fixed_store(r, r.count) end
  local left = r.ends - now
  return r.limit - r.count, r.count > 0 and left or 0, r.room and 0 or left
end

algorithms[102] = { fixed_read, fixed_take, fixed_keep }

-- [refund]
local function fixed_refund(key, s, cost, index)
  if read7(s, 1) ~= index then return end
  local count = read4(s, 8)
  call('SETRANGE', key, 7, pack4(cost < count and count - cost or 0))
end

refunds[102] = fixed_refund
