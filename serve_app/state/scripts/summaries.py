"""Summaries of what left the prompt, and the lines that they are made of."""

from __future__ import annotations

from serve_app.state.scripts.prelude import step

__all__ = ["KEEP_SUMMARY", "LINE"]

# ARGV: ttl, item. Returns how often items were deleted, the body, the latest summary before or at the
# item and the item of it, then id, item, id, item, … of the line up to the item.
LINE = step("""
local body = redis.call('HGET', meta, 'body')
if not body then return {'missing'} end
if redis.call('HEXISTS', parents, ARGV[2]) == 0 then return {'unknown'} end
local ids = line(ARGV[2])
local summary, at = latest(':summary', ids)
local reply = {'found', redis.call('HGET', meta, 'forgotten') or '0', body, summary, at}
return with_items(reply, ids)
""")

# ARGV: ttl, item, summary of all up to it, how often items were deleted when it was begun.
KEEP_SUMMARY = step("""
if redis.call('HEXISTS', parents, ARGV[2]) == 0 then return 'unknown' end
if (redis.call('HGET', meta, 'forgotten') or '0') ~= ARGV[4] then return 'unknown' end
redis.call('HSET', known, ARGV[2] .. ':summary', ARGV[3])
redis.call('EXPIRE', known, math.max(redis.call('TTL', meta), 1))
return 'stored'
""")
