-- Gives back what judge.lua charged, as far as it still counts; never more, and nothing lives longer.
--
-- KEYS  one for each rate
-- ARGV  for each rate one string, big-endian: algorithm (1 byte), limit (4), period in us (7),
--       burst (4), cost (5), and the two marks of the charge (7 each)

local refunds = {}
-- [algorithms]

for i = 1, #KEYS do
  local a, s = ARGV[i], call('GET', KEYS[i])
  if s then
    refunds[byte(a)](KEYS[i], s, byte(a, 17) * 4294967296 + read4(a, 18), read7(a, 22), read7(a, 29),
      read4(a, 2), read7(a, 6))
  end
end
return ''
