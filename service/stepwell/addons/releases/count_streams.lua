-- Counts the streams on one page of a SCAN by model and version.
--
-- ARGV[1..3]  cursor, pattern, number of keys
--
-- A record's version is its fingerprint, bytes 64 to 71; that of a pair is the half that responded last. A pair's value
-- ends with 32 bytes: 'SWP1', mode, failed, responded, .., fingerprints of the old version and of the candidate.
--
-- Returns the next cursor, then threes of: model, fingerprint, number of streams.
local call, match, sub = redis.pcall, string.match, string.sub
local page = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3])
local names, models, is_version = page[2], {}, {}
for i = 1, #names do
  local name = names[i]
  local model, version = match(name, '^[^/]*/([^/]*)/'), call('GETRANGE', name, 64, 71)
  if model and #version == 8 then -- else the key is not a record, or its value is of another type
    if not is_version[version] then -- a fingerprint is that of a pair in all records, or in none
      local pair = call('GETRANGE', name, -32, -1)
      if sub(pair, 1, 4) ~= 'SWP1' then
        is_version[version] = true
      else
        version = string.byte(pair, 7) == 1 and sub(pair, 25, 32) or sub(pair, 17, 24)
      end
    end
    local counts = models[model]
    if not counts then
      counts = {}
      models[model] = counts
    end
    counts[version] = (counts[version] or 0) + 1
  end
end
local reply = {page[1]}
for model, counts in pairs(models) do
  for version, n in pairs(counts) do
    reply[#reply + 1] = model
    reply[#reply + 1] = version
    reply[#reply + 1] = n
  end
end
return reply
