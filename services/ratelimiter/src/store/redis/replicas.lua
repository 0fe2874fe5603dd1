-- Says that a replica is alive, and how many are.
--
-- KEYS[1]  A sorted set: each replica by when it last said so, in milliseconds since 1970 by this server's clock.
-- ARGV     1: the replica's name; 2: milliseconds after which one that said nothing counts as gone
-- Returns  How many are alive, this one included. The set expires by itself when all are gone.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.0f', now - ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[2] * 2)
return redis.call('ZCARD', KEYS[1])
