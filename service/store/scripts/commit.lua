-- Commits a batch of records, each only if its stream is still where the writer saw it.
-- Times are milliseconds. One stream's keys share a hash tag; on a Cluster the batch is one stream.
--
-- KEYS          n records, m entries of idempotency keys, histories of streams
-- ARGV[1..5]    n, time to live of a record, of an entry, 1 to leave the times to live of records as they are, m
-- ARGV[6..]     n pairs: guard expected ('' = the stream must be missing; '!' = the key must hold no record, see 4),
--               new record ('-' = forget the stream)
-- ARGV[6+2n..]  m pairs: index of its record, new entry
-- and the rest  fours, what is told once a record is written: index of its record, event, topic ('' = it is not
--               published), how many events its history keeps (0 = it has none; else it is the next of KEYS)
--
-- An entry whose key ends in ':end' is the last words of a stream that is forgotten: it is only written, since the
-- guard alone says whether it is this operation's turn.
--
-- Answers those that were not applied now, each with its index:
--   {i, 2, record}   this very operation is already the stream's newest one
--   {i, 3, entry}    this idempotency key had been used: its own answer
--   {i, 0, record}   the stream is elsewhere (or missing: no record); here is the truth
--   {i, 4}           the key holds no record: something of another type, or bytes too short to have a guard
local call, pcall = redis.call, redis.pcall
local n, ttl, entry_ttl, keep, m = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4] == '1', tonumber(ARGV[5])
local entry_at = {}
for k = n + 1, n + m do
  entry_at[tonumber(ARGV[2 * k + 4])] = k
end
local told_at, log_at, published = nil, nil, nil
if #ARGV >= 6 + 2 * (n + m) then
  told_at, log_at, published = {}, {}, {}
  local log = n + m
  for a = 6 + 2 * (n + m), #ARGV, 4 do
    local i = tonumber(ARGV[a])
    told_at[i] = a
    if ARGV[a + 3] ~= '0' then
      log = log + 1
      log_at[i] = KEYS[log]
    end
  end
end

local others = {}
for i = 1, n do
  local key, expected, record = KEYS[i], ARGV[2 * i + 4], ARGV[2 * i + 5]
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
    if type(current) == 'table' or (current == '' and call('GET', key)) then
      current = '!'
    end
    if current == expected then
      if forget then
        call('DEL', key, key .. ':s', key .. ':h') -- with its snapshots and history, in the same slot
      elseif keep then
        call('SET', key, record, 'KEEPTTL')
      else
        call('SET', key, record, 'PX', ttl)
      end
      if entry then
        call('SET', KEYS[entry], ARGV[2 * entry + 5], 'PX', entry_ttl)
      end
      local a = told_at and told_at[i]
      if a then -- with pcall: what goes wrong in telling must not make the commit look as if it was not applied
        local log, event, topic = log_at[i], ARGV[a + 1], ARGV[a + 2]
        if log and not forget then
          pcall('RPUSH', log, event)
          pcall('LTRIM', log, -ARGV[a + 3], -1)
          pcall('PEXPIRE', log, ttl)
        end
        if topic ~= '' then
          published[topic] = published[topic] or {}
          table.insert(published[topic], event)
        end
      end
    elseif current == '!' then
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
for topic, events in pairs(published or {}) do
  pcall('PUBLISH', topic, table.concat(events))
end
return others
