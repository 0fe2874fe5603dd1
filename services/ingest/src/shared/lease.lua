-- Gives what is kept under a key; when nothing is, leaves a lease there for the caller. One step, one round trip.
--
-- KEYS[1]  the image's key.
-- ARGV[1]  the caller's lease: a byte 0 and 16 random bytes.
-- ARGV[2]  how long it holds, in milliseconds.
--
-- Returns the value: a verdict (first byte 1), somebody's lease (first byte 0), or nil: the lease is the caller's.
local value = redis.call('GET', KEYS[1])
if not value then
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return value
