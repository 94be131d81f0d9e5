-- The Lua half of bucket.rs: units that were used, falling by `units` every `ticks`.

--@ room
local units, ticks, limit, max_used
units, ticks, limit, max_used, at = struct.unpack('<dddd', numbers, at)
local used, since, last = 0, 0, 0
if stored then
  used, since, last, pos = struct.unpack('<ddd', stored, pos)
  if used > max_used then used = max_used end
  if last > now then
    if follow then
      since, last, moved = since - (last - now), now, true
    else
      now = last
    end
  end
end
local regained = mul_div(now - since, units, ticks)
local room = limit
if regained < used then room = limit - (used - regained) end

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
if regained >= used then untouched = true end
local lost, back = 0, n
if fresh_at and fresh_at < now then
  lost = now - fresh_at
  local whole, rest = mul_div(n, ticks, units)
  if rest > 0 then whole = whole + 1 end
  if lost >= whole then lost, back, untouched = 0, 0, true end
end
since = since + lost
local later = -floor((now - since) / ticks)
if later < 0 then later = 0 end
used, since = used + later * units - back, since - later * ticks
if used > max_used then used = max_used end
regained = mul_div(now - since, units, ticks)
if regained < used then
  local spans = floor((now - since) / ticks)
  used, since, last = used - spans * units, since + spans * ticks, now
else
  used, since, last = 0, now, now
end

--@ fresh_after
local whole, rest = mul_div(used, ticks, units)
if rest > 0 then whole = whole + 1 end
local fresh_after = since + whole - now

--@ write
-- The longest delay that the other half can keep beside so many units.
if used > 536870911 and last - since > 536870911 then last = since + 536870911 end
local state = struct.pack('<ddd', used, since, last)
