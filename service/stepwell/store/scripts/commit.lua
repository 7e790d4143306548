-- Commits a batch of records, each only if the stored record still has the guard that the writer expects.
-- Times are milliseconds. One stream's keys share a hash tag; in a Cluster the batch is of one stream.
--
-- KEYS          n records, m idempotency entries, event logs
-- ARGV[1..5]    n, time to live of a record, of an entry, 1 to leave the expiries of records unchanged, m
-- ARGV[6..]     n pairs: expected guard ('' = the stream must be missing; '!' = the value of the key must not be a
--               record, see 4; 8 bytes = the epoch alone, of a deletion), new record ('-' = delete the stream)
-- ARGV[6+2n..]  m pairs: index of its record, new entry
-- the rest      groups of five, the notification of a commit: index of its record, event, topic ('' = do not
--               publish), number of events that the log keeps (0 = no log; otherwise the log is the next of KEYS),
--               number of workers that receive the event on the stream's shard channel (0 = use the topic)
--
-- An event goes to the shard channel, KEYS[i]:w, only if at least that many connections are subscribed to it. While the
-- slot is moved some of them are not yet subscribed on its new node; the topic reaches those on every node.
--
-- An entry whose key ends in ':end' stores the response to the request that deleted the stream. It is written but not
-- read here: whether that request is applied depends on the guard alone.
--
-- Returns the commits that were not applied now, each with its index, and the deletions by an epoch:
--   {i, 1, record}   applied; the record that was deleted
--   {i, 2, record}   this operation is already the stream's newest one
--   {i, 3, entry}    this idempotency key was used before; its stored response
--   {i, 0, record}   the guard does not match; the stored record (none if the stream is missing)
--   {i, 4}           the value of the key is not a record: another type, or too short to have a guard
local call, pcall = redis.call, redis.pcall
local n, ttl, entry_ttl, keep, m = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4] == '1', tonumber(ARGV[5])
local entry_at = {}
for k = n + 1, n + m do
  entry_at[tonumber(ARGV[2 * k + 4])] = k
end
local notify_at, log_at, published = nil, nil, nil
if #ARGV >= 6 + 2 * (n + m) then
  notify_at, log_at, published = {}, {}, {}
  local log = n + m
  for a = 6 + 2 * (n + m), #ARGV, 5 do
    local i = tonumber(ARGV[a])
    notify_at[i] = a
    if ARGV[a + 3] ~= '0' then
      log = log + 1
      log_at[i] = KEYS[log]
    end
  end
end

local function publish_sharded(channel, workers, event)
  if workers == '0' then
    return false
  end
  local subscribed = pcall('PUBSUB', 'SHARDNUMSUB', channel)
  if subscribed.err or subscribed[2] < tonumber(workers) then
    return false
  end
  return type(pcall('SPUBLISH', channel, event)) == 'number'
end

local not_applied = {}
for i = 1, n do
  local key, expected, record = KEYS[i], ARGV[2 * i + 4], ARGV[2 * i + 5]
  local entry = entry_at[i]
  -- an entry of another type is not ours: it replays nothing, and is overwritten
  local deletes = record == '-'
  local replays = entry and not (deletes and string.sub(KEYS[entry], -4) == ':end')
  local stored = replays and pcall('GET', KEYS[entry])
  if type(stored) == 'string' then
    call('PEXPIRE', KEYS[entry], entry_ttl)
    not_applied[#not_applied + 1] = {i, 3, stored}
  else
    local current = pcall('GETRANGE', key, 8, 63)
    if type(current) == 'table' or (current == '' and call('GET', key)) then
      current = '!'
    end
    local by_epoch = deletes and #expected == 8 and string.sub(current, 1, 8) == expected
    if current == expected or by_epoch then
      if by_epoch then
        not_applied[#not_applied + 1] = {i, 1, call('GET', key)}
      end
      if deletes then
        call('DEL', key, key .. ':s', key .. ':h') -- with its snapshots and event log, in the same slot
      elseif keep then
        call('SET', key, record, 'KEEPTTL')
      else
        call('SET', key, record, 'PX', ttl)
      end
      if entry then
        call('SET', KEYS[entry], ARGV[2 * entry + 5], 'PX', entry_ttl)
      end
      local a = notify_at and notify_at[i]
      if a then -- pcall: an error in publishing must not make an applied commit look as if it failed
        local log, event, topic = log_at[i], ARGV[a + 1], ARGV[a + 2]
        if log and not deletes then
          pcall('RPUSH', log, event)
          pcall('LTRIM', log, -ARGV[a + 3], -1)
          pcall('PEXPIRE', log, ttl)
        end
        if topic ~= '' and not publish_sharded(key .. ':w', ARGV[a + 4], event) then
          published[topic] = published[topic] or {}
          table.insert(published[topic], event)
        end
      end
    elseif current == '!' then
      not_applied[#not_applied + 1] = {i, 4}
    elseif not deletes and current == string.sub(record, 9, 64) then
      -- PEXPIRE is a write, so that a WAIT after it covers the first commit
      call('PEXPIRE', key, ttl)
      not_applied[#not_applied + 1] = {i, 2, call('GET', key)}
    else
      not_applied[#not_applied + 1] = {i, 0, call('GET', key)}
    end
  end
end
for topic, events in pairs(published or {}) do
  pcall('PUBLISH', topic, table.concat(events))
end
return not_applied
