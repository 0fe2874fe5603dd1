-- Decides a batch of checks, each by all of its counters, with the algorithm of gcra.rs.
--
-- KEYS     The counters of the batch, each once; in a Cluster all in one slot. A counter's value is two big-endian doubles:
--          its theoretical arrival time, and until when its key is sure to be kept; both in microseconds since 1970. A missing
--          one, or one of another length, is as if never used. Another layout needs other keys (LAYOUT in key.rs).
-- ARGV[1]  Whole numbers, packed by MessagePack as one array, so that a check costs Redis one short string to parse:
--            now     microseconds since 1970, for tests; 0: the clock of this server
--            grace   milliseconds for which a key outlives what its value says
--            spare   microseconds for which a key that is written anew is kept longer than its counter needs
--            T, B*T  for every key: microseconds that a hit costs, and from an empty counter to a full one
--          then for every check of the batch, in order:
--            op      0: charge all counters when each has room, else none; 1: give back what was charged
--            n       how many counters it has, and for each of them:
--            key     its place in KEYS
--            hits    what it costs this counter; 0 only asks how it stands
-- Returns  Whole numbers, flat: now; then for every check 1 (all had room) or 0 (none was charged), and for each of its
--          counters the microseconds from now to its arrival time, after the decision; 0 when that is not later.
--
-- Everything stays below 2^53, where doubles are exact: now is below 2^51, B*T below 2^46. A key expires by itself, never
-- before its counter is as if never used: `grace` is there since a script's clock and the one that expires keys may differ by as
-- long as the script runs. Setting a time to live costs Redis more than all else here, so a key gets `spare` more than it needs,
-- and until that is used up only its first eight bytes are overwritten, which leaves the time to live as it is. An arrival time
-- further away than a full counter's, as after a clock was set back, counts as a full counter's.

local call, format, pack, unpacked = redis.call, string.format, struct.pack, struct.unpack
local A = cmsgpack.unpack(ARGV[1])
local now = A[1]
if now == 0 then
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
end
local grace, spare = A[2], A[3]

local count = #KEYS
local found = call('MGET', unpack(KEYS))
local used, kept, dirty = {}, {}, {}
for i = 1, count do
  local value = found[i]
  local left = 0
  if value and #value == 16 then
    local arrival, till = unpacked('>dd', value)
    left, kept[i] = arrival - now, till
    if left < 0 then left = 0 elseif left > A[2 * i + 3] then left = A[2 * i + 3] end
  end
  used[i] = left
end

local answer, size = { now }, 1
local at, last = 2 * count + 4, #A
while at < last do
  local op, first = A[at], at + 2
  local final = first + 2 * A[at + 1] - 2
  local room = 1
  if op == 0 then
    for c = first, final, 2 do
      local i, hits = A[c], A[c + 1]
      if used[i] + hits * A[2 * i + 2] > A[2 * i + 3] then room = 0 end
    end
  end
  size = size + 1
  answer[size] = room
  for c = first, final, 2 do
    local i, hits = A[c], A[c + 1]
    if hits > 0 and room == 1 then
      local left = used[i]
      if op == 0 then
        left = left + hits * A[2 * i + 2]
      else
        left = left - hits * A[2 * i + 2]
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
  local arrival = now + used[i]
  if kept[i] and kept[i] >= arrival then
    call('SETRANGE', KEYS[i], '0', pack('>d', arrival))
  else
    local life = used[i] + spare
    call('SET', KEYS[i], pack('>dd', arrival, now + life), 'PX', format('%d', math.ceil(life / 1000) + grace))
  end
end
return answer
