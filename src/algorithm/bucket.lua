-- The Lua half of bucket.rs: units that were used, falling by `units` every `ticks`.

--@ room
local units, ticks, capacity, max_used
units, ticks, capacity, max_used, at = struct.unpack('<dddd', numbers, at)
local used, since, last = 0, 0, 0
if stored then
  used, since, last, pos = struct.unpack('<ddd', stored, pos)
  if last > now then
    if follow then
      since, last, moved = since - (last - now), now, true
    else
      now = last
    end
  end
end
local regained = mul_div(now - since, units, ticks)
local room = capacity
if regained < used then
  room = capacity - (used - regained)
  if room < 0 then room = 0 end
end

--@ take
if regained < used then
  -- As late an instant as whole numbers allow.
  local spans = floor((now - since) / ticks)
  used, since = used - spans * units + n, since + spans * ticks
else
  used, since = n, now
end
if used > max_used then used = max_used end
last = now

--@ give_back
used = used - n
if regained < used then
  local spans = floor((now - since) / ticks)
  used, since, last = used - spans * units, since + spans * ticks, now
else
  used, since, last = 0, 0, 0
end

--@ fresh_after
local whole, rest = mul_div(used, ticks, units)
if rest > 0 then whole = whole + 1 end
local fresh_after = since + whole - now

--@ write
-- The longest delay that the other half can keep beside so many units.
if used > 536870911 and last - since > 536870911 then last = since + 536870911 end
local state = struct.pack('<ddd', used, since, last)
