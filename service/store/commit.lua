-- Commits a batch of records, each only if its stream is still where the writer saw it.
-- Times are milliseconds. One stream's keys share a hash tag; on a Cluster the batch is one stream.
--
-- KEYS[1..n]    records; KEYS[n+1..] entries of idempotency keys
-- ARGV[1..3]    n, time to live of a record, time to live of an entry
-- ARGV[4..]     n pairs: guard expected ('' = the stream must be missing), new record
-- ARGV[4+2n..]  per entry a pair: index of its record, new entry
--
-- Answers per record:
--   1             applied now
--   {2, record}   this very operation is already the stream's newest one
--   {3, entry}    this idempotency key had been used: its own answer
--   {0, record}   the stream is elsewhere (or missing: false); here is the truth
--   {4}           the key holds something that is no string
local n, ttl, entry_ttl = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local entry_at = {}
for k = n + 1, #KEYS do
  entry_at[tonumber(ARGV[2 * k + 2])] = k
end

local answers = {}
for i = 1, n do
  local key, expected, record = KEYS[i], ARGV[2 * i + 2], ARGV[2 * i + 3]
  local entry_key = entry_at[i] and KEYS[entry_at[i]]
  local known = entry_key and redis.call('GET', entry_key)
  if known then
    redis.call('PEXPIRE', entry_key, entry_ttl)
    answers[i] = {3, known}
  else
    local current = redis.pcall('GETRANGE', key, 8, 63)
    if type(current) == 'table' then
      answers[i] = {4}
    elseif current == expected then
      redis.call('SET', key, record, 'PX', ttl)
      if entry_key then
        redis.call('SET', entry_key, ARGV[2 * entry_at[i] + 3], 'PX', entry_ttl)
      end
      answers[i] = 1
    elseif current == string.sub(record, 9, 64) then
      -- a write, so that a WAIT after it covers the first one
      redis.call('PEXPIRE', key, ttl)
      answers[i] = {2, redis.call('GET', key)}
    else
      answers[i] = {0, redis.call('GET', key)}
    end
  end
end
return answers
