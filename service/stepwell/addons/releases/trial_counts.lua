-- Adds the counts of one worker to those of a trial, exactly once.
--
-- KEYS[1]     the trial's counts, a hash
-- ARGV[1..2]  the worker's name, the number of this addition, ascending
-- ARGV[3]     time to live, milliseconds
-- ARGV[4..]   threes of: how ('n' integer to add, 'x' number to add, 'max' greatest number), field, value
--
-- Returns 1: added; 0: this addition was made before.
local call, counts, seq = redis.call, KEYS[1], 'seq:' .. ARGV[1]
if tonumber(call('HGET', counts, seq) or '0') >= tonumber(ARGV[2]) then
  return 0
end
call('HSET', counts, seq, ARGV[2])
for i = 4, #ARGV, 3 do
  local how, field, value = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if how == 'n' then
    call('HINCRBY', counts, field, value)
  elseif how == 'x' then
    call('HINCRBYFLOAT', counts, field, value)
  else
    local greatest = call('HGET', counts, field)
    if not greatest or tonumber(value) > tonumber(greatest) then
      call('HSET', counts, field, value)
    end
  end
end
call('PEXPIRE', counts, ARGV[3])
return 1
