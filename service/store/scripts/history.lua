-- Reads what is kept of a stream's events, and publishes a mark between those before and those after that moment.
--
-- KEYS[1..2]    record, history
-- ARGV[1..2]    topic, mark
--
-- Answers the eight bytes of the record's step, none where there is no record; and the events, the oldest first.
local events = redis.call('LRANGE', KEYS[2], 0, -1)
redis.call('PUBLISH', ARGV[1], ARGV[2])
return {redis.call('GETRANGE', KEYS[1], 16, 23), events}
