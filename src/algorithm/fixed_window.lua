-- The Lua half of fixed_window.rs: the units of the window around the instant `last`.

--@ room
local limit, length
limit, length, at = struct.unpack('<dd', numbers, at)
local count, last = 0, 0
if stored then
  count, last, pos = struct.unpack('<dd', stored, pos)
  if last > now then
    if follow then
      last, moved = now, true
    else
      now = last
    end
  end
end
local window = now - now % length
if last < window then count = 0 end
local room = limit - count

--@ take
count, last = count + n, now
if count > max_units then count = max_units end

--@ give_back
if count == 0 or taken_at and taken_at < window then
  untouched = true
else
  count, last = n < count and count - n or 0, now
end

--@ fresh_after
local fresh_after = 0
if count > 0 then fresh_after = window + length - now end

--@ write
local state = struct.pack('<dd', count, last)
