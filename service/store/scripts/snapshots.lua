-- Puts one snapshot of a stream, or takes one away. Times are milliseconds; both keys share the stream's hash tag.
--
-- KEYS[1]   the stream's snapshots: a hash, by name
-- KEYS[2]   entry of an idempotency key, or none
-- ARGV[1..4]  name, snapshot ('' = take it away), most snapshots that a stream may have, their time to live
-- ARGV[5..6]  new entry, its time to live
--
-- Answers {1}: done; {3, entry}: this idempotency key had been used, its own answer; {5}: as many as may be are there
local call, snapshots, name, snapshot = redis.call, KEYS[1], ARGV[1], ARGV[2]
local known = KEYS[2] and call('GET', KEYS[2])
if known then
  call('PEXPIRE', KEYS[2], ARGV[6])
  return {3, known}
end
if snapshot == '' then
  call('HDEL', snapshots, name)
else
  if call('HEXISTS', snapshots, name) == 0 and call('HLEN', snapshots) >= tonumber(ARGV[3]) then
    return {5}
  end
  call('HSET', snapshots, name, snapshot)
  call('PEXPIRE', snapshots, ARGV[4])
end
if KEYS[2] then
  call('SET', KEYS[2], ARGV[5], 'PX', ARGV[6])
end
return {1}
