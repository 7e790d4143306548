-- Counts the streams on one page of a SCAN by model and version.
--
-- ARGV[1..3]  cursor, pattern, number of keys
--
-- A record's version is its fingerprint, bytes 64 to 71; that of a pair is the half that responded last. A pair's value
-- ends with 32 bytes: 'SWP1', mode, failed, responded, .., fingerprints of the old version and of the candidate.
--
-- Returns the next cursor, the number of keys, then threes of: model, fingerprint, number of streams.
local call, sub = redis.pcall, string.sub
local page = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3])
local counts, versions = {}, {}
for _, name in ipairs(page[2]) do
  local model = string.match(name, '/([^/]*)/[^/]*}$')
  local fingerprint = call('GETRANGE', name, 64, 71)
  if model and type(fingerprint) == 'string' and #fingerprint == 8 then
    if not versions[fingerprint] then -- a fingerprint is that of a pair, or that of a version, in all records
      local pair = call('GETRANGE', name, -32, -1)
      if sub(pair, 1, 4) ~= 'SWP1' then
        versions[fingerprint] = fingerprint
      else
        fingerprint = string.byte(pair, 7) == 1 and sub(pair, 25, 32) or sub(pair, 17, 24)
      end
    end
    local counted = model .. '/' .. fingerprint
    counts[counted] = (counts[counted] or 0) + 1
  end
end
local reply = {page[1], #page[2]}
for counted, n in pairs(counts) do
  reply[#reply + 1] = sub(counted, 1, -10)
  reply[#reply + 1] = sub(counted, -8)
  reply[#reply + 1] = n
end
return reply
