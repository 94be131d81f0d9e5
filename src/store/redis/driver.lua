-- What every script is made of, around the sections of its algorithms (see script.rs).

--@ begin
local key, numbers, pos = KEYS[1], ARGV[1], 1
local PEEK, CHECK, TAKE_UP_TO, DEBIT, RESERVE = 0, 1, 2, 3, 4
local floor = math.floor
local max_units = 35184372088831 -- 2^45 - 1
local available, change, longest, view, states = math.huge, 0, 0, '', ''
local taken_at, overdraws, repeated = false, false, false
-- When units that are taken now may go, and the rate of the queue that they go from.
local leaves_at, lead_units, lead_ticks = 0, 1, 0
-- Whether a state is kept although it has expired: by the clients' clocks, for its instant.
local keeps = false

-- a * b / m, rounded down, and the remainder. a < 2^53; b and m < 2^45.
local function mul_div(a, b, m)
  local product = a * b
  if product < 9007199254740992 then
    local quotient = floor(product / m)
    return quotient, product - quotient * m
  end
  -- A long division, seven bits of b at a time, so that all stays below 2^53.
  local whole = floor(a / m)
  local rest = a - whole * m
  local quotient, remainder = 0, 0
  local digit = 4398046511104 -- 2^42
  while digit >= 1 do
    local part = remainder * 128 + rest * (floor(b / digit) % 128)
    local times = floor(part / m)
    quotient, remainder = quotient * 128 + times, part - times * m
    digit = digit / 128
  end
  return whole * b + quotient, remainder
end

--@ server_time
-- Where the server's clock went back, the states go back with it.
local follow, moved, slack_millis = true, false, 2
local op, n, min_ttl_millis, at = struct.unpack('<Bdd', numbers)
local time = redis.call('TIME')
local clock = time[1] * 1000000 + time[2]

--@ client_time
-- Where the clients' clocks go back, time stands still. Keys expire by another clock than theirs.
local follow, moved, slack_millis = false, false, 900
local op, n, min_ttl_millis, clock, at = struct.unpack('<Bddd', numbers)

--@ load
local stored = redis.call('GET', key)

--@ check_length
if stored and pos ~= #stored + 1 then
  error('what is stored is not of these limits, or of another version')
end

--@ grant
if moved then
  change = 0
elseif op == CHECK then
  if n <= available then change = n end
elseif op == TAKE_UP_TO then
  if n > available then n = available end
  if n < 0 then n = 0 end
  change = n
elseif op == DEBIT then
  change, leaves_at = n, 0
elseif op == RESERVE then
  -- Behind the settings is the longest delay.
  if n <= available and leaves_at - clock <= struct.unpack('<d', numbers, at) then change = n end
end

--@ taken_at
-- A settlement is for a request, and counts once.
local REFUND, CHARGE = 0, 2
local left_at, taken, request_millis, touched
taken_at, left_at, taken, request_millis, at = struct.unpack('<dddd', numbers, at)
local request = KEYS[2]
if op == REFUND then
  taken_at = false
else
  overdraws, repeated = op == CHARGE, redis.call('EXISTS', request) == 1
end

--@ correct
if not moved and not repeated then change = op == CHARGE and n or -n end
leaves_at = 0

--@ remember
if request and not moved and not repeated then redis.call('SET', request, '', 'PX', request_millis) end

--@ ttl
-- A little longer than it must be, and not for all keys alike.
local needed_millis = floor(longest / 1000) + slack_millis
if needed_millis < min_ttl_millis then needed_millis = min_ttl_millis end
local ttl_millis = needed_millis + floor(longest * (clock % 1024) / 16384000)

--@ save
-- By the clients' clocks time stands still where they go back, also for a key whose units were all
-- given back.
if longest > 0 then
  redis.call('SET', key, states, 'PX', ttl_millis)
elseif keeps then
  -- As long as the units would have been kept.
  redis.call('SET', key, states, 'KEEPTTL')
else
  redis.call('DEL', key)
end

--@ reset
redis.call('DEL', KEYS[1])
return struct.pack('<dd', clock, 0)

--@ publish
-- A refusal is told to a stream. Where that fails, the decision stands.
if change == 0 and not moved and (op == CHECK or op == TAKE_UP_TO or op == RESERVE) then
  local _, asked = struct.unpack('<Bd', numbers)
  if asked > 0 then
    local max_len, head = struct.unpack('<dd', numbers, #numbers - 15)
    redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', max_len, '*',
      'limits', string.sub(key, 1, head), 'key', string.sub(key, head + 2),
      'asked', asked, 'room', available > 0 and available or 0)
  end
end

--@ reply
-- The time, the units taken, and the state as it was before. Where the clock went back, the
-- client asks again; where this was done before, it tells how things stand. (One string, as a table is slow to turn into a reply.)
if moved then
  change = -1
elseif repeated then
  change = -2
elseif change < 0 then
  change = 0
end
if before then return struct.pack('<ddc0', clock, change, before) end
return struct.pack('<dd', clock, change)
