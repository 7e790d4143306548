-- Acquires or renews the lease of a group of alert processes.
--
-- KEYS[1]     lease
-- ARGV[1..2]  who acquires it, milliseconds for which it is held
--
-- Returns the holder, and the store's time: seconds, microseconds.
local holder = redis.call('GET', KEYS[1])
if not holder or holder == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  holder = ARGV[1]
end
local time = redis.call('TIME')
return {holder, time[1], time[2]}
