-- Writes or deletes one snapshot of a stream. Times are milliseconds; all keys share the stream's hash tag.
--
-- KEYS[1]   the stream's snapshots: a hash, by name
-- KEYS[2]   the stream's record: a snapshot is written only if it has the epoch of the record that was copied
-- KEYS[3]   an idempotency entry, or none
-- ARGV[1..4]  name, snapshot ('' = delete it), maximum number of snapshots of a stream, their time to live
-- ARGV[5..7]  new entry, its time to live, epoch of the record
--
-- Returns {1}: done; {3, entry}: this idempotency key was used before, its stored response; {5}: the maximum is reached;
-- {6}: the stream was deleted or reset since it was read
local call, snapshots, name, snapshot = redis.call, KEYS[1], ARGV[1], ARGV[2]
local stored = KEYS[3] and call('GET', KEYS[3])
if stored then
  call('PEXPIRE', KEYS[3], ARGV[6])
  return {3, stored}
end
if snapshot == '' then
  call('HDEL', snapshots, name)
else
  if redis.pcall('GETRANGE', KEYS[2], 8, 15) ~= ARGV[7] then
    return {6}
  end
  if call('HEXISTS', snapshots, name) == 0 and call('HLEN', snapshots) >= tonumber(ARGV[3]) then
    return {5}
  end
  call('HSET', snapshots, name, snapshot)
  call('PEXPIRE', snapshots, ARGV[4])
end
if KEYS[3] then
  call('SET', KEYS[3], ARGV[5], 'PX', ARGV[6])
end
return {1}
