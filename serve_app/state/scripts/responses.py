"""Stored responses: what they were made from, what people think of them, and their end."""

from __future__ import annotations

from serve_app.state.scripts.prelude import step

__all__ = ["DELETE_RESPONSE", "FEEDBACK", "INPUT_LINE"]

# ARGV: ttl, response. Returns the response, then id, item, … of all that was said before its turn.
INPUT_LINE = step("""
local stored = redis.call('HGET', responses, ARGV[2])
if not stored then return {'unknown'} end
touch()
return with_items({'found', stored}, line(redis.call('HGET', turns, ARGV[2] .. ':base') or ''))
""")

# ARGV: ttl, response, feedback.
FEEDBACK = step("""
if redis.call('HEXISTS', responses, ARGV[2]) == 0 then return 'unknown' end
redis.call('HSET', feedback, ARGV[2], ARGV[3])
touch()
return 'stored'
""")

# ARGV: ttl, response. In a conversation its items stay; of what is no conversation, those stay that
# another response builds on.
DELETE_RESPONSE = step("""
if redis.call('HEXISTS', responses, ARGV[2]) == 0 then return 'unknown' end
local said = redis.call('ZSCORE', ended, ARGV[2])
forget_response(ARGV[2])
redis.call('HSET', turns, ARGV[2] .. (said and ':said' or ':unsaid'), '')
if redis.call('HGET', meta, 'hidden') ~= '1' then
  touch()
  return 'deleted'
end
if redis.call('HLEN', responses) == 0 then
  -- Where idempotency keys lead here, they and the marks outlive the rest.
  local claims, marks = redis.call('SMEMBERS', KEYS[12]), redis.call('HKEYS', turns)
  drop_conversation()
  if #claims > 0 then
    redis.call('SADD', KEYS[12], unpack(claims))
    for _, field in ipairs(marks) do
      if string.find(field, 'said$') then redis.call('HSET', turns, field, '') end
    end
    touch()
  end
  return 'deleted'
end
local used = {}
local fields = redis.call('HGETALL', turns)
for i = 1, #fields, 2 do
  for _, id in ipairs(line(fields[i + 1])) do used[id] = true end
end
for _, id in ipairs(redis.call('ZRANGE', every, 0, -1)) do
  if not used[id] then drop_item(id) end
end
return 'deleted'
""")
