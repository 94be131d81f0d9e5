-- The Lua half of sliding_window_counter.rs: the units of two windows, of which the later one
-- begins at `start`, and the instant of the last of them.

--@ room
local limit, length
limit, length, at = struct.unpack('<dd', numbers, at)
local previous, current, start, last = 0, 0, 0, 0
if stored then
  previous, current, start, last, pos = struct.unpack('<dddd', stored, pos)
end
local clock = now
if last > now then now = last end
local window = now - now % length
if start ~= window then
  -- Each count is of the window in which its last unit can have been taken.
  local counts, latest = { current, previous }, { last, start - 1 }
  previous, current, start = 0, 0, window
  for i = 1, 2 do
    if latest[i] >= window then
      current = current + counts[i]
    elseif latest[i] >= window - length then
      previous = previous + counts[i]
    end
  end
  if previous > max_units then previous = max_units end
  if current > max_units then current = max_units end
end
local weighted, rest = mul_div(previous, length - (now - window), length)
if rest > 0 then weighted = weighted + 1 end
local room = limit - weighted - current
if follow and now > clock then
  -- What counts as the clock goes back, counts as taken now.
  now, moved = clock, true
  previous, current, start, last = 0, weighted + current, now - now % length, now
end

--@ take
current, last = current + n, now
if current > max_units then current = max_units end

--@ give_back
if (not taken_at or taken_at >= start) and current > 0 then
  current, last = n < current and current - n or 0, now
elseif taken_at and taken_at < start and taken_at + length >= start and previous > 0 then
  previous, last = n < previous and previous - n or 0, now
else
  untouched = true
end

--@ fresh_after
local fresh_after = 0
if current > 0 then
  fresh_after = start + 2 * length - now
elseif previous > 0 then
  fresh_after = start + length - now
end

--@ write
local state = struct.pack('<dddd', previous, current, start, last)
