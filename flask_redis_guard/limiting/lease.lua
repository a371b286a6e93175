-- Leases of a concurrency limit: a sorted set of ids by the time at which they expire (us).
--
-- KEYS     the set
-- ARGV     'acquire' (one that is held is renewed) or 'release', id, lease (us), limit
-- Returns  three numbers with spaces between them: whether it was done (1 or 0), leases now held, us until the first of them expires
--
-- An id ends in ':' and its lease in us. If the clock was set back, a lease that would last longer
-- than that is cut to it, so that a place is never lost for longer than its lease.

local key, mode, id, lease = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])

local function text(n) return format('%.0f', n) end

call('ZREMRANGEBYSCORE', key, '-inf', text(now))
if tonumber(call('ZREVRANGE', key, 0, 0, 'WITHSCORES')[2] or 0) > now + lease then
  local held = call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for i = 1, #held, 2 do
    local longest = now + tonumber(held[i]:match(':(%d+)$'))
    if tonumber(held[i + 1]) > longest then call('ZADD', key, text(longest), held[i]) end
  end
end

local held, done = call('ZCARD', key), 0
if mode == 'release' then
  done = call('ZREM', key, id)
  held = held - done
elseif held < tonumber(ARGV[4]) or call('ZSCORE', key, id) then
  call('ZADD', key, text(now + lease), id)
  held, done = call('ZCARD', key), 1
end

local first = call('ZRANGE', key, 0, 0, 'WITHSCORES')
if held > 0 then
  local last = call('ZREVRANGE', key, 0, 0, 'WITHSCORES')
  call('PEXPIRE', key, expiry(tonumber(last[2]) - now))
  return format('%d %d %.0f', done, held, tonumber(first[2]) - now)
end
return format('%d 0 0', done)
