-- Replaces a release document, if it is still the one that the caller has read.
--
-- KEYS[1..2]  the document, its revision: it outlives the document, so that revisions never begin again
-- ARGV[1..2]  the document that was read ('' = none), the new one
-- ARGV[3..5]  topic and message that announce a change, revision of the new document
--
-- Returns 1: written, or written before by the same call; 0: another document is stored.
local stored = redis.call('GET', KEYS[1]) or ''
if stored == ARGV[2] then
  return 1
end
if stored ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[5])
redis.call('PUBLISH', ARGV[3], ARGV[4])
return 1
