-- The Lua half of sliding_log.rs: an entry of 16 bytes for each time that units were taken, the
-- newest at the end.
--
--   7 bytes  when they were taken
--   6 bytes  the total of units up to here, these included (modulo 2^48)
--   3 bytes  how many entries, up to this one, counted at that time; 0 marks an entry without
--            units, which holds the time of a refund
--
-- A place is counted from the end, 1 for the newest entry. Entries that count no more stay at
-- the front for a while, at least one of them for its total; so a log on a key of its own is
-- never read or written as a whole.

--@ open
local log = ''
if stored then
  local length
  length, pos = struct.unpack('<I4', stored, pos)
  log, pos = string.sub(stored, pos, pos + length - 1), pos + length
end
local function range(from, to)
  return string.sub(log, from, to)
end
local newest = range(-32, -1)

--@ open_alone
local function range(from, to)
  local bytes = redis.call('GETRANGE', key, from, to)
  if #bytes == 1 then return '' end -- of what lies before the beginning
  return bytes
end
local newest = range(-32, -1)
local stored = newest ~= ''

--@ room
local limit, window
limit, window, at = struct.unpack('<dd', numbers, at)
local function entry(place)
  return struct.unpack('<I7I6', range(-16 * place, 12 - 16 * place))
end

local last, total, count, newest_at, marked = 0, 0, 0, 0, false
if newest ~= '' then
  last, total, count = struct.unpack('<I7I6I3', newest, #newest - 15)
  newest_at = last
  marked = count == 0
  if marked and #newest > 16 then
    newest_at, total, count = struct.unpack('<I7I6I3', newest, #newest - 31)
    count = count + 1
  elseif marked then
    total = 0
  end
end

-- The whole log, or what is written over so many of its last bytes.
local replaced, added
local over = 0
if last > now then
  if follow then
    local entries, back = {}, last - now
    local old = range(-16 * (count + 1), -1)
    for i = 1, #old, 16 do
      local taken_at = struct.unpack('<I7', old, i) - back
      if taken_at < 0 then taken_at = 0 end
      entries[#entries + 1] = struct.pack('<I7', taken_at) .. string.sub(old, i + 7, i + 15)
    end
    replaced, moved, newest_at = table.concat(entries), true, newest_at - back
  else
    now = last
  end
end

-- The oldest entry that counts is the one that was when the newest was written, or a later one.
local head, head_at, head_total, before = count, 0, 0, 0
if count > 0 then
  local expired = now - window
  local low = count > 3 and count - 2 or 1
  local bytes = range(-16 * (count + 1), 15 - 16 * low)
  local i = #bytes - 16 * (count - low + 1) + 1
  if i > 1 then before = struct.unpack('<I6', bytes, i - 9) end
  while head >= low do
    head_at, head_total = struct.unpack('<I7I6', bytes, i)
    if head_at > expired then break end
    before, head, i = head_total, head - 1, i + 16
  end
  if head == low - 1 then
    local counts, gone = 0, low
    while gone - counts > 1 do
      local place = floor((counts + gone) / 2)
      local taken_at, up_to = entry(place)
      if taken_at > expired then
        counts, head_at, head_total = place, taken_at, up_to
      else
        gone, before = place, up_to
      end
    end
    head = counts
  end
end

local modulus = 281474976710656
local used = 0
if head > 0 then used = (total - before) % modulus end
local room = limit - used
local head_rank = (head_total - before) % modulus

-- The place of the entry with the unit of that rank, counted from the oldest unit that counts.
local function find(rank)
  if head_rank >= rank then return head end
  local newer, older = 1, head
  while older - newer > 1 do
    local place = floor((newer + older) / 2)
    local _, up_to = entry(place)
    if (up_to - before) % modulus >= rank then newer = place else older = place end
  end
  return newer
end

-- So many of the oldest units are to stay, and the time is to be noted.
local keep
-- Units are given back from the entry at this place on, towards the newest.
local since = 0

--@ view
-- The log without the entries that make no difference to this decision: those with the oldest
-- unit and with the newest always do, and those with these units may.
local seen
local after = used + change
if overdraws and after > 2 * limit then after = used > 2 * limit and used or 2 * limit end
local must_go = after > limit and after - limit + 1 or 1
local asked = 1
if change == 0 then asked = used - limit + (op == TAKE_UP_TO and 1 or n) end
if used == 0 then
  seen = struct.pack('<dI4', last, 0)
elseif must_go == 1 and asked <= 1 and change >= 0 and head_rank > 0 then
  seen = struct.pack('<dI4dddd', last, 2, head_at, head_rank, newest_at, used)
else
  local ranks, some = { 1, used }, { must_go, asked, after }
  if taken_at and change < 0 then
    -- Those before and behind the units that are given back, and what is to expire next then.
    local older = head + 1
    if taken_at + window <= now then older = 1 end
    while older - since > 1 do
      local middle = floor((since + older) / 2)
      if entry(middle) >= taken_at then since = middle else older = middle end
    end
    local rank = 0
    if since < head then
      local _, up_to = entry(since + 1)
      rank = (up_to - before) % modulus
    end
    local back = -change
    if back > used - rank then back = used - rank end
    must_go = used - back > limit and used - back - limit + 1 or 1
    if must_go > rank then must_go = must_go + back end
    some = { rank, rank + back, rank + back + 1, must_go }
  end
  for _, rank in ipairs(some) do
    if rank > 1 and rank < used then ranks[#ranks + 1] = rank end
  end
  table.sort(ranks)
  seen = struct.pack('<dI4', last, #ranks)
  for _, rank in ipairs(ranks) do
    local taken_at, up_to = entry(find(rank))
    seen = seen .. struct.pack('<dd', taken_at, (up_to - before) % modulus)
  end
end

--@ take
local units = max_units - used
if n < units then units = n end
if head >= 16777214 then error('a log holds at most 16777214 entries') end
if head == 0 then
  replaced = struct.pack('<I7I6I3', now, units, 1)
elseif used > 2 * limit then
  -- What counts beyond twice the limit is kept at this time.
  local place = find(2 * limit)
  local older = head - place + 1
  over = 16 * place
  added = struct.pack('<I7I6I3', (entry(place)), (before + 2 * limit) % modulus, older)
    .. struct.pack('<I7I6I3', now, (total + units) % modulus, older + 1)
else
  added = struct.pack('<I7I6I3', now, (total + units) % modulus, head + 1)
end
newest_at = now

--@ give_back
if used == 0 or taken_at and since == 0 then
  untouched = true
elseif taken_at then
  -- The entries of that instant and later are written anew, and the others stay.
  local bytes, newer = range(-16 * (since + 1), -1), {}
  local first = #bytes - 16 * since + 1
  local left, counted, up_to = n, head - since, before
  if since < head then up_to = struct.unpack('<I6', bytes, first - 9) end
  local up_to_before = up_to
  for i = first, #bytes, 16 do
    local entry_at, entry_up_to = struct.unpack('<I7I6', bytes, i)
    local units = (entry_up_to - up_to_before) % modulus
    local back = left < units and left or units
    left, up_to_before = left - back, entry_up_to
    if back < units then
      up_to, counted = (up_to + units - back) % modulus, counted + 1
      newer[#newer + 1] = struct.pack('<I7I6I3', entry_at, up_to, counted)
      newest_at = entry_at
    end
  end
  if #newer > 0 then
    total = up_to
    replaced = range(-16 * (head + 1), -16 * since - 1)
      .. table.concat(newer) .. struct.pack('<I7I6I3', now, total, 0)
  else
    keep = (up_to - before) % modulus
  end
else
  keep = used - n
end

--@ fresh_after
if keep and keep > 0 then
  local place = find(keep)
  newest_at = entry(place)
  total = (before + keep) % modulus
  replaced = range(-16 * (head + 1), -16 * place - 1)
    .. struct.pack('<I7I6I3', newest_at, total, head - place + 1)
    .. struct.pack('<I7I6I3', now, total, 0)
elseif keep then
  replaced, newest_at = follow and '' or struct.pack('<I7I6I3', now, 0, 0), now - window
end
local fresh_after = newest_at + window - now

--@ write
if added then replaced = range(-16 * (head + 1), -1 - over) .. added end
if replaced then log = replaced end
local state = struct.pack('<I4', #log) .. log

--@ write_alone
if added and over > #added then
  replaced = range(-16 * (head + 1), -1 - over) .. added
end
if fresh_after <= 0 and not keeps then
  redis.call('DEL', key)
elseif fresh_after <= 0 then
  redis.call('SET', key, replaced, 'KEEPTTL')
elseif replaced then
  redis.call('SET', key, replaced, 'PX', ttl_millis)
elseif added then
  local length = over == 0 and redis.call('APPEND', key, added)
    or redis.call('SETRANGE', key, redis.call('STRLEN', key) - over, added)
  if length > 32 * head + 4096 then
    redis.call('SET', key, range(-16 * (head + 2), -1), 'PX', ttl_millis)
  elseif redis.call('PTTL', key) < needed_millis then
    -- Most entries leave the expiry as it is, unless another period has set it.
    redis.call('PEXPIRE', key, ttl_millis)
  end
end
