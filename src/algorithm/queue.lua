-- What a queue does otherwise than a bucket: units go when all before them have left.

--@ delay
local tail = 0
if regained < used then
  local whole, rest = mul_div(used, ticks, units)
  if rest > 0 then whole = whole + 1 end
  tail = since + whole
end
if tail > leaves_at then leaves_at, lead_units, lead_ticks = tail, units, ticks end

--@ take
if regained < used then
  -- As late an instant as whole numbers allow.
  local spans = floor((now - since) / ticks)
  used, since = used - spans * units, since + spans * ticks
else
  used, since = 0, now
end
if leaves_at > tail and leaves_at > since then
  -- Another queue is the longer one: if it is faster, the next units keep this one's distance.
  local spacing, more = mul_div(ticks, lead_units, units)
  if spacing > lead_ticks or spacing == lead_ticks and more > 0 then
    local whole, rest = mul_div(leaves_at - since, units, ticks)
    used = rest > 0 and whole + 1 or whole
  end
end
used, last = used + n, now
if used > max_used then used = max_used end

--@ give_back
-- Only of the last place, and all of it only before the departure.
local start = 0
if taken_at and used >= taken then
  local whole, rest = mul_div(used - taken, ticks, units)
  if rest > 0 then whole = whole + 1 end
  start = since + whole
end
if taken_at and tail > now and tail == held_until and start == fresh_at then
  local back = taken
  if now > left_at then back = back - 1 end
  if n < back then back = n end
  used = used - back
  if back == 0 then
    untouched = true
  elseif regained < used then
    local spans = floor((now - since) / ticks)
    used, since, last = used - spans * units, since + spans * ticks, now
  else
    used, since, last = 0, now, now
  end
else
  untouched = true
end

