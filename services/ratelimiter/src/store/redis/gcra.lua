-- Decides a batch of checks, each by all of its counters, with the algorithm of gcra.rs.
--
-- KEYS     The counters of the batch, each once; in a Cluster all in one slot. A counter's value is its theoretical
--          arrival time in microseconds since 1970, as a decimal number; a missing one is as if never used.
-- ARGV[1]  Whole numbers, packed by MessagePack as one array, so that a check costs Redis one short string to parse:
--            now     microseconds since 1970, for tests; 0: the clock of this server
--            grace   milliseconds for which a key outlives its counter
--            T, B*T  for every key: microseconds that a hit costs, and from an empty counter to a full one
--          then for every check of the batch, in order:
--            op      0: charge all counters when each has room, else none; 1: give back what was charged
--            n       how many counters it has, and for each of them:
--            key     its place in KEYS
--            hits    what it costs this counter; 0 only asks how it stands
-- Returns  Whole numbers, flat: now; then for every check 1 (all had room) or 0 (none was charged), and for each of its
--          counters the microseconds from now to its arrival time, after the decision; 0 when that is not later.
--
-- Everything stays below 2^53, where Lua's numbers are exact: now is below 2^51, B*T below 2^46. They are written by
-- '%.0f', because tostring keeps 14 digits only. A key expires by itself, `grace` after its counter is as if never used: never
-- before, since a script's clock and the one that expires keys may differ by as long as the script runs. An arrival time
-- further away than a full counter's, as after a clock was set back, counts as a full counter's.

local call = redis.call
local A = cmsgpack.unpack(ARGV[1])
local now = A[1]
if now == 0 then
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
end
local grace = A[2]

local count = #KEYS
local found = call('MGET', unpack(KEYS))
local used, dirty = {}, {}
for i = 1, count do
  local value = found[i]
  local left = 0
  if value then
    left = tonumber(value) - now
    if left < 0 then left = 0 elseif left > A[2 * i + 2] then left = A[2 * i + 2] end
  end
  used[i] = left
end

local answer, size = { now }, 1
local at, last = 2 * count + 3, #A
while at < last do
  local op, first = A[at], at + 2
  local final = first + 2 * A[at + 1] - 2
  local room = 1
  if op == 0 then
    for c = first, final, 2 do
      local i, hits = A[c], A[c + 1]
      if used[i] + hits * A[2 * i + 1] > A[2 * i + 2] then room = 0 end
    end
  end
  size = size + 1
  answer[size] = room
  for c = first, final, 2 do
    local i, hits = A[c], A[c + 1]
    if hits > 0 and room == 1 then
      local left = used[i]
      if op == 0 then
        left = left + hits * A[2 * i + 1]
      else
        left = left - hits * A[2 * i + 1]
        if left < 0 then left = 0 end
      end
      used[i] = left
      dirty[i] = true
    end
    size = size + 1
    answer[size] = used[i]
  end
  at = final + 2
end

for i in pairs(dirty) do
  call('SET', KEYS[i], string.format('%.0f', now + used[i]), 'PX', math.ceil(used[i] / 1000) + grace)
end
return answer
