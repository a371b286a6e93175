-- 'l': the sliding window up to 16. The times of all admissions within the period, 7 bytes each.

-- [judge]
local function log_read(r)
  local s = call('GET', r.key) or ''
  local count, first = #s / 7, 1
  if #s % 7 ~= 0 then error('not a log of admissions: ' .. r.key) end
  while first <= count and read7(s, 7 * first - 6) <= now - r.period do first = first + 1 end
  if first > 1 then s = sub(s, 7 * first - 6) end
  count = count - first + 1
  local late = 0
  while late < count and read7(s, 7 * (count - late) - 6) > now do late = late + 1 end
  if late > 0 then
    r.moved, s = true, sub(s, 1, 7 * (count - late)) .. pack7(now):rep(late)
  end
  r.stored, r.count = s, count
  r.room = count + r.cost <= r.limit
end

local function log_store(r, log)
  call('SET', r.key, log, 'PX', expiry(r.period))
end

local function log_take(r)
  log_store(r, r.stored .. pack7(now):rep(r.cost))
  return format('1 %.0f %.0f 0 %.0f 0', r.limit - r.count - r.cost, r.period, now)
end

local function log_keep(r)
  if r.moved then log_store(r, r.stored) end
  local reset, retry = 0, 0
  if r.count > 0 then reset = read7(r.stored, 7 * r.count - 6) + r.period - now end
  if not r.room then retry = read7(r.stored, 7 * (r.count + r.cost - r.limit) - 6) + r.period - now end
  return r.limit - r.count, reset, retry
end

algorithms[108] = { log_read, log_take, log_keep }

-- [refund]
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

refunds[108] = log_refund
