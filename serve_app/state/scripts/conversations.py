"""Conversations: what they are, and the items that clients read and change."""

from __future__ import annotations

from serve_app.state.scripts.prelude import step

__all__ = ["APPEND_ITEMS", "DELETE_CONVERSATION", "DELETE_ITEM", "LOAD", "PAGE", "UPDATE"]

# ARGV: ttl. Returns body, then id, item, id, item, … of the line that ends in the head.
LOAD = step("""
local body = redis.call('HGET', meta, 'body')
if not body then return {'missing'} end
touch()
return with_items({'found', body}, redis.call('ZRANGE', order, 0, -1))
""")

# ARGV: ttl, body or '', time to live of its own or '', response whose turn becomes the head or ''.
UPDATE = step("""
if not shown() then return 'missing' end
if ARGV[4] ~= '' then
  local last = redis.call('HGET', turns, ARGV[4] .. ':last')
  if not last then return 'unknown' end
  put_head(last)
end
if ARGV[2] ~= '' then redis.call('HSET', meta, 'body', ARGV[2]) end
if ARGV[3] ~= '' then redis.call('HSET', meta, 'ttl', ARGV[3]) end
touch()
return 'stored'
""")

# ARGV: ttl, after or '', limit, 'asc' or 'desc'.
# Returns whether more follow, then id, item, id, item, …
PAGE = step("""
if not shown() then return {'missing'} end
local first = 0
local falling = ARGV[4] == 'desc'
if ARGV[2] ~= '' then
  local rank = redis.call(falling and 'ZREVRANK' or 'ZRANK', order, ARGV[2])
  if not rank then return {'unknown'} end
  first = rank + 1
end
local limit = tonumber(ARGV[3])
local ids = redis.call(falling and 'ZREVRANGE' or 'ZRANGE', order, first, first + limit)
local more = #ids > limit
if more then ids[#ids] = nil end
touch()
return with_items({more and 'more' or 'end'}, ids)
""")

# ARGV: ttl, most items, how many system messages they begin with, then id, item, id, item, …
APPEND_ITEMS = step("""
if not shown() then return 'missing' end
if clashes(4) then return 'clash' end
pin_first(ARGV[3])
append(head(), 4)
cut_to(ARGV[2])
touch()
return 'stored'
""")

# ARGV: ttl, item. What hung on it then hangs on the item before it. States and summaries may hold what
# the item said, so they go too.
DELETE_ITEM = step("""
if not shown() then return 'missing' end
local parent = redis.call('HGET', parents, ARGV[2])
if not parent then return 'unknown' end
local pairs_of = redis.call('HGETALL', parents)
for i = 1, #pairs_of, 2 do
  if pairs_of[i + 1] == ARGV[2] then redis.call('HSET', parents, pairs_of[i], parent) end
end
local ends = redis.call('HGETALL', turns)
for i = 1, #ends, 2 do
  if ends[i + 1] == ARGV[2] then redis.call('HSET', turns, ends[i], parent) end
end
local kept = tonumber(redis.call('HGET', meta, 'pinned') or 0)
if redis.call('ZRANK', every, ARGV[2]) < kept then redis.call('HINCRBY', meta, 'pinned', -1) end
drop_item(ARGV[2])
redis.call('DEL', known)
redis.call('HINCRBY', meta, 'forgotten', 1)
touch()
return 'deleted'
""")

# ARGV: ttl. Returns the keys of the idempotency records that led here.
DELETE_CONVERSATION = step("""
if redis.call('HEXISTS', meta, 'body') == 0 then return {'missing'} end
local gone = redis.call('SMEMBERS', KEYS[12])
for _, response in ipairs(redis.call('HKEYS', responses)) do drop_journal(response) end
drop_conversation()
table.insert(gone, 1, 'deleted')
return gone
""")
