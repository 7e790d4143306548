-- Acquires, renews or releases a lease.
--
-- KEYS[1]     lease
-- ARGV[1..2]  who acquires it, milliseconds for which it is held (0 = release it)
--
-- Returns the holder ('' = nobody), and the store's time: seconds, microseconds.
local holder = redis.call('GET', KEYS[1]) or ''
if holder == '' or holder == ARGV[1] then
  if ARGV[2] == '0' then
    redis.call('DEL', KEYS[1])
    holder = ''
  else
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    holder = ARGV[1]
  end
end
local time = redis.call('TIME')
return {holder, time[1], time[2]}
