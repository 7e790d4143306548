-- Commits a batch of records, each only if its stream is still where the writer saw it.
-- Times are milliseconds. One stream's keys share a hash tag; on a Cluster the batch is one stream.
--
-- KEYS[1..n]    records; KEYS[n+1..] entries of idempotency keys
-- ARGV[1..4]    n, time to live of a record, of an entry, and 1 to leave the times to live of records as they are
-- ARGV[5..]     n pairs: guard expected ('' = the stream must be missing), new record ('-' = forget the stream)
-- ARGV[5+2n..]  per entry a pair: index of its record, new entry
--
-- An entry whose key ends in ':end' is the last words of a stream that is forgotten: it is only written, since the
-- guard alone says whether it is this operation's turn.
--
-- Answers those that were not applied now, each with its index:
--   {i, 2, record}   this very operation is already the stream's newest one
--   {i, 3, entry}    this idempotency key had been used: its own answer
--   {i, 0, record}   the stream is elsewhere (or missing: no record); here is the truth
--   {i, 4}           the key holds something that is no string
local call, pcall = redis.call, redis.pcall
local n, ttl, entry_ttl, keep = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4] == '1'
local entry_at = {}
for k = n + 1, #KEYS do
  entry_at[tonumber(ARGV[2 * k + 3])] = k
end

local others = {}
for i = 1, n do
  local key, expected, record = KEYS[i], ARGV[2 * i + 3], ARGV[2 * i + 4]
  local entry = entry_at[i]
  -- an entry of another type is none of ours: it answers nothing, and is replaced
  local forget = record == '-'
  local answers = entry and not (forget and string.sub(KEYS[entry], -4) == ':end')
  local known = answers and pcall('GET', KEYS[entry])
  if type(known) == 'string' then
    call('PEXPIRE', KEYS[entry], entry_ttl)
    others[#others + 1] = {i, 3, known}
  else
    local current = pcall('GETRANGE', key, 8, 63)
    if current == expected then
      if forget then
        call('DEL', key, key .. ':s') -- with its snapshots; they share the record's slot
      elseif keep then
        call('SET', key, record, 'KEEPTTL')
      else
        call('SET', key, record, 'PX', ttl)
      end
      if entry then
        call('SET', KEYS[entry], ARGV[2 * entry + 4], 'PX', entry_ttl)
      end
    elseif type(current) == 'table' then
      others[#others + 1] = {i, 4}
    elseif not forget and current == string.sub(record, 9, 64) then
      -- a write, so that a WAIT after it covers the first one
      call('PEXPIRE', key, ttl)
      others[#others + 1] = {i, 2, call('GET', key)}
    else
      others[#others + 1] = {i, 0, call('GET', key)}
    end
  end
end
return others
