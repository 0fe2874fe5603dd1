-- Takes a lease back, if it is still the caller's, so that the next who asks need not wait for its end.
--
-- KEYS[1]  the image's key.
-- ARGV[1]  the caller's lease.
--
-- Returns 1 when it was there, else 0.
if redis.call('GET', KEYS[1]) == ARGV[1] then
    return redis.call('DEL', KEYS[1])
end
return 0
