-- Writes the results of an evaluation of rules, if the writer still has the lease of its group.
--
-- KEYS[1..5]  lease, id of the model's newest call, index of raised alarms, raised alarms, states of streams
-- KEYS[6..]   outboxes
-- ARGV[1..3]  lease holder, id of this call, most entries of an outbox
-- ARGV[4]     MessagePack: [[stream, state or '' to delete it], ..],
--             [[member of the index, alarm or '' to delete it], ..], [alarm to send, ..]
--
-- Returns 1: written, now or by an earlier attempt of the same call; 0: the lease has another holder.
local call = redis.call
if call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
if call('GET', KEYS[2]) == ARGV[2] then
  return 1
end
local states, raised, sent = unpack(cmsgpack.unpack(ARGV[4]))
for _, one in ipairs(states) do
  if one[2] == '' then
    call('HDEL', KEYS[5], one[1])
  else
    call('HSET', KEYS[5], one[1], one[2])
  end
end
for _, one in ipairs(raised) do
  if one[2] == '' then
    call('ZREM', KEYS[3], one[1])
    call('HDEL', KEYS[4], one[1])
  else
    call('ZADD', KEYS[3], 0, one[1])
    call('HSET', KEYS[4], one[1], one[2])
  end
end
for k = 6, #KEYS do
  for _, alarm in ipairs(sent) do
    call('XADD', KEYS[k], 'MAXLEN', '~', ARGV[3], '*', 'alarm', alarm)
  end
end
call('SET', KEYS[2], ARGV[2])
return 1
