-- Judges every rate of a request together and charges all of them or none.
--
-- KEYS     one for each rate
-- ARGV     one string, since each argument costs the client and the server more than its bytes:
--          'h' for a hit or 'p' for a peek; for each rate, big-endian: algorithm (1 byte), limit (4),
--          period in us (7), burst (4), cost (5), group (2)
-- Group 0 is enforced. Any other group is a shadow: it is charged if all of it and of group 0 has
-- room, and keeps nothing else from being charged.
-- Returns  numbers with spaces between them, for each rate six: has room (1 or 0), remaining, us
--          until it is reset, us until there is room for the cost, and two marks that a refund
--          hands back. One text costs the server and the client less than a list.
--
-- Each algorithm that the request uses adds to `algorithms` its three functions: one reads, one
-- charges and answers, one leaves all as it is and returns remaining, reset and retry. A script makes
-- all its functions anew at every call, which is a good part of its time: so it has only those that
-- it needs.
--
-- If the clock was set back, what is stamped later than now counts as stamped now: events are only
-- ever taken for younger than they are, so nothing above the limit is admitted, and a full period
-- later all is as before. That is stored also by a refusal, or it would move along with the clock.

local algorithms = {}
-- [algorithms]

local rates, full, reply, hit = {}, {}, {}, byte(ARGV[1]) == 104
for i = 1, #KEYS do
  local kind, l1, l2, l3, l4, p1, p2, p3, p4, p5, p6, p7, b1, b2, b3, b4, c1, c2, c3, c4, c5, g1, g2 =
    byte(ARGV[1], 23 * i - 21, 23 * i + 1)
  local r = { -- with all its fields at once, so that the table need not grow
    key = KEYS[i], algorithm = algorithms[kind], group = g1 * 256 + g2,
    limit = ((l1 * 256 + l2) * 256 + l3) * 256 + l4,
    period = (((((p1 * 256 + p2) * 256 + p3) * 256 + p4) * 256 + p5) * 256 + p6) * 256 + p7,
    burst = ((b1 * 256 + b2) * 256 + b3) * 256 + b4,
    cost = (((c1 * 256 + c2) * 256 + c3) * 256 + c4) * 256 + c5,
    index = 0, count = 0, ends = 0, room = false, whole = true, moved = false, stored = false,
  }
  r.algorithm[1](r)
  if not r.room then full[r.group] = true end
  rates[i] = r
end
for i = 1, #KEYS do
  local r = rates[i]
  if hit and not full[0] and not full[r.group] then
    reply[i] = r.algorithm[2](r)
  else
    -- A cost that never fits has no moment at which it would: the period stands for it.
    local never = r.cost > r.burst
    if never then r.room, r.cost = true, 0 end
    local remaining, reset, retry = r.algorithm[3](r)
    if never then r.room, retry = false, r.period end
    reply[i] = format('%d %.0f %.0f %.0f 0 0', r.room and 1 or 0, remaining, reset, retry)
  end
end
return table.concat(reply, ' ')
