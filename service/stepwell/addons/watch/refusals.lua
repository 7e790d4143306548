-- Adds an entry to a log of refused timesteps, once: the worker repeats a call whose reply was lost.
--
-- KEYS[1..2]    log, number of the worker's newest entry in it
-- ARGV[1..4]    number of this entry, its content, about how many entries are kept, milliseconds until both keys expire
if redis.call('GET', KEYS[2]) == ARGV[1] then
  return
end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', 'r', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[4])
