-- Reads a stream's event log, and publishes a mark that separates the events before the read from those after it.
--
-- KEYS[1..2]    record, event log
-- ARGV[1..3]    topic, mark, shard channel on which the mark is published as well ('' = none)
--
-- Returns the eight bytes of the record's step, empty if there is no record; and the events, the oldest first.
local events = redis.call('LRANGE', KEYS[2], 0, -1)
redis.call('PUBLISH', ARGV[1], ARGV[2])
if ARGV[3] ~= '' then
  redis.pcall('SPUBLISH', ARGV[3], ARGV[2]) -- pcall: the slot may have moved since the channel was subscribed to
end
return {redis.call('GETRANGE', KEYS[1], 16, 23), events}
