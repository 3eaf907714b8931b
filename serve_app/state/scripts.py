"""What Redis does of a conversation in one step, in Lua. Each script checks before its first write.

KEYS are those of `ConversationKeys.all()`, in that order; ARGV[1] is always the time to live where
the conversation has none of its own.
"""

from __future__ import annotations

__all__ = [
    "ABANDON",
    "APPEND_ITEMS",
    "BEGIN",
    "CANCEL",
    "COMMIT",
    "CONCLUDE",
    "DELETE_CONVERSATION",
    "DELETE_ITEM",
    "DELETE_RESPONSE",
    "FEEDBACK",
    "INPUT_LINE",
    "KEEP",
    "KEEP_SUMMARY",
    "LINE",
    "LOAD",
    "PAGE",
    "SEIZE",
    "UPDATE",
]

_PRELUDE = """
local meta, order, every, items = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local parents, turns, ended, responses = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local queue, runs, feedback = KEYS[9], KEYS[10], KEYS[11]
local known = KEYS[13]

local function touch()
  local ttl = redis.call('HGET', meta, 'ttl') or ARGV[1]
  for i = 1, #KEYS do redis.call('EXPIRE', KEYS[i], ttl) end
end

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function alive(response)
  local lease = redis.call('HGET', runs, response .. ':lease')
  return lease and tonumber(lease) > now()
end

local function release(response)
  redis.call('ZREM', queue, response)
  redis.call('HDEL', runs, response .. ':owner', response .. ':lease', response .. ':cancel')
end

local function drop_dead()
  for _, response in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
    if not alive(response) then redis.call('ZREM', queue, response) end
  end
end

local function head()
  return redis.call('ZREVRANGE', order, 0, 0)[1] or ''
end

local function pinned()
  local count = tonumber(redis.call('HGET', meta, 'pinned') or 0)
  if count == 0 then return {} end
  return redis.call('ZRANGE', every, 0, count - 1)
end

-- Ids from the root to an item. Where old items were cut, what is pinned stands for them.
local function line(item)
  local back = {}
  local cut = false
  while item ~= '' do
    local parent = redis.call('HGET', parents, item)
    if not parent then cut = true break end
    back[#back + 1] = item
    item = parent
  end
  local ids = cut and pinned() or {}
  for i = #back, 1, -1 do ids[#ids + 1] = back[i] end
  return ids
end

local function put_head(item)
  redis.call('DEL', order)
  for _, id in ipairs(line(item)) do
    redis.call('ZADD', order, redis.call('ZSCORE', every, id), id)
  end
end

-- Adds ARGV[first], ARGV[first + 1], … as id, item, … behind an item; returns the last id.
local function append(parent, first)
  local straight = parent == head()
  for i = first, #ARGV, 2 do
    local sequence = redis.call('HINCRBY', meta, 'sequence', 1)
    redis.call('ZADD', every, sequence, ARGV[i])
    redis.call('HSET', items, ARGV[i], ARGV[i + 1])
    redis.call('HSET', parents, ARGV[i], parent)
    if straight then redis.call('ZADD', order, sequence, ARGV[i]) end
    parent = ARGV[i]
  end
  if not straight then put_head(parent) end
  return parent
end

local function clashes(first)
  for i = first, #ARGV, 2 do
    if redis.call('HEXISTS', items, ARGV[i]) == 1 then return true end
  end
  return false
end

local function forget_response(response)
  redis.call('HDEL', responses, response)
  redis.call('HDEL', feedback, response)
  redis.call('HDEL', turns, response .. ':base', response .. ':last')
  redis.call('ZREM', ended, response)
  release(response)
end

-- Cuts the oldest items of all lines, but never what is pinned.
local function cut_to(most)
  local excess = redis.call('ZCARD', every) - tonumber(most)
  if excess <= 0 then return end
  local kept = tonumber(redis.call('HGET', meta, 'pinned') or 0)
  for _, id in ipairs(redis.call('ZRANGE', every, kept, kept + excess - 1)) do
    redis.call('ZREM', every, id)
    redis.call('ZREM', order, id)
    redis.call('HDEL', items, id)
    redis.call('HDEL', parents, id)
    redis.call('HDEL', known, id .. ':state', id .. ':summary')
  end
  local oldest = redis.call('ZRANGE', every, kept, kept, 'WITHSCORES')[2]
  if oldest then
    for _, response in ipairs(redis.call('ZRANGEBYSCORE', ended, '-inf', '(' .. oldest)) do
      forget_response(response)
    end
  end
end

local function with_items(reply, ids)
  for _, id in ipairs(ids) do
    local item = redis.call('HGET', items, id)
    if item then
      reply[#reply + 1] = id
      reply[#reply + 1] = item
    end
  end
  return reply
end

-- What is known at the end of a line: the latest of a kind, and the item that it was known at.
local function latest(kind, ids)
  if redis.call('EXISTS', known) == 0 then return '', '' end
  for i = #ids, 1, -1 do
    local found = redis.call('HGET', known, ids[i] .. kind)
    if found then return found, ids[i] end
  end
  return '', ''
end

-- System messages that an empty conversation begins with never leave it.
local function pin_first(count)
  if redis.call('ZCARD', every) == 0 then redis.call('HSET', meta, 'pinned', count) end
end

local function drop_conversation()
  for _, key in ipairs(KEYS) do redis.call('DEL', key) end
end
"""

# ARGV: ttl. Returns body, then id, item, id, item, … of the line that ends in the head.
LOAD = (
    _PRELUDE
    + """
local body = redis.call('HGET', meta, 'body')
if not body then return {'missing'} end
touch()
return with_items({'found', body}, redis.call('ZRANGE', order, 0, -1))
"""
)

# ARGV: ttl, response, owner, lease in ms, what to do while another turn runs ('' for side by side),
# most turns in the queue, where to hang the turn on ('head', 'previous', 'replaces', 'new'), of which
# response, draft of the response or '', user or '', claim or '', body of a new conversation, whether
# the request itself says what to do while another turn runs ('1' or '').
# Returns ('waits', turns before), or ('go', whether clients can't know it, item before, how many items
# the line has, the conversation's body, the latest state and the item of it, the latest summary and the
# item of it, then the line's id, item, …, then those of the input that is answered again), or what
# stands in the way.
BEGIN = (
    _PRELUDE
    + """
local response, mode, kind, other = ARGV[2], ARGV[5], ARGV[7], ARGV[8]
local user = redis.call('HGET', meta, 'user')
if redis.call('EXISTS', meta) == 0 then
  if kind ~= 'new' then return {'missing'} end
  redis.call('HSET', meta, 'body', ARGV[12], 'hidden', '1', 'pinned', '0')
end
if kind == 'head' and redis.call('HGET', meta, 'hidden') == '1' then return {'missing'} end
if ARGV[10] ~= '' then
  if user and user ~= '' and user ~= ARGV[10] then return {'missing'} end
  redis.call('HSET', meta, 'user', ARGV[10])
end
if redis.call('HEXISTS', turns, response .. ':last') == 1 then return {'repeated'} end
local holder = redis.call('HGET', runs, response .. ':owner')
if holder and holder ~= ARGV[3] and alive(response) then return {'flies'} end
local hidden = redis.call('HGET', meta, 'hidden') or ''
if hidden == '1' then mode = '' end
if mode ~= '' and ARGV[13] == '' then mode = redis.call('HGET', meta, 'on_busy') or mode end
if mode ~= '' then
  drop_dead()
  if not redis.call('ZSCORE', queue, response) then
    local before = redis.call('ZRANGE', queue, 0, -1)
    if #before > 0 and mode == 'reject' then return {'busy', before[1]} end
    if #before >= tonumber(ARGV[6]) and mode == 'enqueue' then return {'full', before[1]} end
    if mode == 'interrupt' then
      for _, id in ipairs(before) do redis.call('HSET', runs, id .. ':cancel', 'interrupt') end
    end
    redis.call('ZADD', queue, redis.call('HINCRBY', meta, 'tickets', 1), response)
  end
end
redis.call('HSET', runs, response .. ':owner', ARGV[3], response .. ':lease', now() + ARGV[4])
if ARGV[9] ~= '' then redis.call('HSET', responses, response, ARGV[9]) end
if ARGV[11] ~= '' then redis.call('SADD', KEYS[12], ARGV[11]) end
touch()
local cancelled = redis.call('HGET', runs, response .. ':cancel')
if cancelled then return {'cancelled', cancelled} end
if mode ~= '' then
  local rank = redis.call('ZRANK', queue, response)
  if rank > 0 then return {'waits', rank} end
end
local base, ids = '', {}
local again = {}
if kind == 'head' then
  base, ids = head(), redis.call('ZRANGE', order, 0, -1)
elseif kind ~= 'new' then
  local base_of = redis.call('HGET', turns, other .. ':base')
  local last_of = redis.call('HGET', turns, other .. ':last')
  if not last_of then
    release(response)
    redis.call('HDEL', responses, response)
    if redis.call('HEXISTS', responses, other) == 1 then return {'unfinished'} end
    return {'unknown'}
  end
  base = kind == 'previous' and last_of or base_of
  ids = line(base)
  if kind == 'replaces' then
    local whole = line(last_of)
    for i = #ids + 1, #whole - 1 do again[#again + 1] = whole[i] end
  end
end
redis.call('HSET', turns, response .. ':base', base)
redis.call('EXPIRE', turns, redis.call('HGET', meta, 'ttl') or ARGV[1])
local state, state_at = latest(':state', ids)
local summary, summary_at = latest(':summary', ids)
local body = redis.call('HGET', meta, 'body')
local reply = {'go', hidden, base, #ids, body, state, state_at, summary, summary_at}
return with_items(with_items(reply, ids), again)
"""
)

# ARGV: ttl, most items, response, owner or '', item before or '=head', the response or '', the state
# behind the turn or '', how many system messages the turn begins with, then id, item, id, item, …
COMMIT = (
    _PRELUDE
    + """
local response = ARGV[3]
if redis.call('EXISTS', meta) == 0 then return 'missing' end
if redis.call('ZSCORE', ended, response) then return 'repeated' end
if ARGV[4] ~= '' and redis.call('HGET', runs, response .. ':owner') ~= ARGV[4] then
  return 'lost'
end
if clashes(9) then return 'clash' end
pin_first(ARGV[8])
local base = ARGV[5]
if base == '=head' or (base ~= '' and redis.call('HEXISTS', parents, base) == 0) then
  base = head()
end
local last = append(base, 9)
if ARGV[7] ~= '' then redis.call('HSET', known, last .. ':state', ARGV[7]) end
redis.call('HSET', turns, response .. ':base', base, response .. ':last', last)
redis.call('ZADD', ended, redis.call('ZSCORE', every, last), response)
if ARGV[6] ~= '' then redis.call('HSET', responses, response, ARGV[6]) end
release(response)
redis.call('DEL', string.sub(meta, 1, -6) .. ':journal:' .. response)
cut_to(ARGV[2])
touch()
return 'stored'
"""
)

# ARGV: ttl, response, owner, the response as it failed.
CONCLUDE = (
    _PRELUDE
    + """
if redis.call('HGET', runs, ARGV[2] .. ':owner') ~= ARGV[3] then return 'lost' end
if redis.call('HEXISTS', responses, ARGV[2]) == 1 then
  redis.call('HSET', responses, ARGV[2], ARGV[4])
end
release(ARGV[2])
redis.call('DEL', string.sub(meta, 1, -6) .. ':journal:' .. ARGV[2])
touch()
return 'stored'
"""
)

# ARGV: ttl, response, owner. Undoes what BEGIN did.
ABANDON = (
    _PRELUDE
    + """
if redis.call('HGET', runs, ARGV[2] .. ':owner') ~= ARGV[3] then return 'lost' end
redis.call('DEL', string.sub(meta, 1, -6) .. ':journal:' .. ARGV[2])
forget_response(ARGV[2])
if redis.call('HGET', meta, 'hidden') == '1' and redis.call('ZCARD', every) == 0
    and redis.call('HLEN', responses) == 0 then
  drop_conversation()
end
return 'stored'
"""
)

# ARGV: ttl, response, owner, lease in ms, journal's ttl, journal's entries, number of the first
# event or '', events. KEYS: runs, journal.
KEEP = """
local runs, response = KEYS[1], ARGV[2]
if redis.call('HGET', runs, response .. ':owner') ~= ARGV[3] then return 'lost' end
local time = redis.call('TIME')
redis.call('HSET', runs, response .. ':lease', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[4])
if ARGV[7] ~= '' then
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', ARGV[7], ARGV[8])
  redis.call('EXPIRE', KEYS[2], ARGV[5])
end
return redis.call('HGET', runs, response .. ':cancel') or 'go'
"""

# ARGV: ttl, response, owner, lease in ms. Takes over a response whose owner has died.
SEIZE = (
    _PRELUDE
    + """
local stored = redis.call('HGET', responses, ARGV[2])
if not stored then return {'unknown'} end
if redis.call('HEXISTS', runs, ARGV[2] .. ':owner') == 1 and alive(ARGV[2]) then
  return {'alive', stored}
end
if redis.call('HEXISTS', runs, ARGV[2] .. ':owner') == 0 then return {'ended', stored} end
redis.call('HSET', runs, ARGV[2] .. ':owner', ARGV[3], ARGV[2] .. ':lease', now() + ARGV[4])
return {'seized', stored}
"""
)

# ARGV: ttl, response.
CANCEL = (
    _PRELUDE
    + """
local stored = redis.call('HGET', responses, ARGV[2])
if not stored then return {'unknown'} end
if redis.call('HEXISTS', runs, ARGV[2] .. ':owner') == 0 then return {'ended', stored} end
redis.call('HSET', runs, ARGV[2] .. ':cancel', 'cancel')
touch()
return {'asked', stored}
"""
)

# ARGV: ttl, response. In a conversation its items stay; of what is no conversation, those stay that
# another response builds on.
DELETE_RESPONSE = (
    _PRELUDE
    + """
if redis.call('HEXISTS', responses, ARGV[2]) == 0 then return 'unknown' end
redis.call('DEL', string.sub(meta, 1, -6) .. ':journal:' .. ARGV[2])
forget_response(ARGV[2])
if redis.call('HGET', meta, 'hidden') ~= '1' then return 'deleted' end
if redis.call('HLEN', responses) == 0 then
  drop_conversation()
  return 'deleted'
end
local used = {}
local fields = redis.call('HGETALL', turns)
for i = 1, #fields, 2 do
  for _, id in ipairs(line(fields[i + 1])) do used[id] = true end
end
for _, id in ipairs(redis.call('ZRANGE', every, 0, -1)) do
  if not used[id] then
    redis.call('ZREM', every, id)
    redis.call('ZREM', order, id)
    redis.call('HDEL', items, id)
    redis.call('HDEL', parents, id)
    redis.call('HDEL', known, id .. ':state', id .. ':summary')
  end
end
return 'deleted'
"""
)

# ARGV: ttl. Returns the keys of the idempotency records that led here.
DELETE_CONVERSATION = (
    _PRELUDE
    + """
if redis.call('HEXISTS', meta, 'body') == 0 then return {'missing'} end
local gone = redis.call('SMEMBERS', KEYS[12])
for _, response in ipairs(redis.call('HKEYS', responses)) do
  redis.call('DEL', string.sub(meta, 1, -6) .. ':journal:' .. response)
end
drop_conversation()
table.insert(gone, 1, 'deleted')
return gone
"""
)

# ARGV: ttl, body or '', time to live of its own or '', response whose turn becomes the head or ''.
UPDATE = (
    _PRELUDE
    + """
if redis.call('HEXISTS', meta, 'body') == 0 or redis.call('HGET', meta, 'hidden') == '1' then
  return 'missing'
end
if ARGV[4] ~= '' then
  local last = redis.call('HGET', turns, ARGV[4] .. ':last')
  if not last then return 'unknown' end
  put_head(last)
end
if ARGV[2] ~= '' then redis.call('HSET', meta, 'body', ARGV[2]) end
if ARGV[3] ~= '' then redis.call('HSET', meta, 'ttl', ARGV[3]) end
touch()
return 'stored'
"""
)

# ARGV: ttl, most items, how many system messages they begin with, then id, item, id, item, …
APPEND_ITEMS = (
    _PRELUDE
    + """
if redis.call('HEXISTS', meta, 'body') == 0 or redis.call('HGET', meta, 'hidden') == '1' then
  return 'missing'
end
if clashes(4) then return 'clash' end
pin_first(ARGV[3])
append(head(), 4)
cut_to(ARGV[2])
touch()
return 'stored'
"""
)

# ARGV: ttl, item. What hung on it then hangs on the item before it. States and summaries may hold what
# the item said, so they go too.
DELETE_ITEM = (
    _PRELUDE
    + """
if redis.call('HEXISTS', meta, 'body') == 0 or redis.call('HGET', meta, 'hidden') == '1' then
  return 'missing'
end
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
redis.call('ZREM', every, ARGV[2])
redis.call('ZREM', order, ARGV[2])
redis.call('HDEL', items, ARGV[2])
redis.call('HDEL', parents, ARGV[2])
redis.call('DEL', known)
redis.call('HINCRBY', meta, 'forgotten', 1)
touch()
return 'deleted'
"""
)

# ARGV: ttl, after or '', limit, 'asc' or 'desc'.
# Returns whether more follow, then id, item, id, item, …
PAGE = (
    _PRELUDE
    + """
if redis.call('HEXISTS', meta, 'body') == 0 or redis.call('HGET', meta, 'hidden') == '1' then
  return {'missing'}
end
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
"""
)

# ARGV: ttl, response. Returns the response, then id, item, … of all that was said before its turn.
INPUT_LINE = (
    _PRELUDE
    + """
local stored = redis.call('HGET', responses, ARGV[2])
if not stored then return {'unknown'} end
touch()
return with_items({'found', stored}, line(redis.call('HGET', turns, ARGV[2] .. ':base') or ''))
"""
)

# ARGV: ttl, response, feedback.
FEEDBACK = (
    _PRELUDE
    + """
if redis.call('HEXISTS', responses, ARGV[2]) == 0 then return 'unknown' end
redis.call('HSET', feedback, ARGV[2], ARGV[3])
touch()
return 'stored'
"""
)

# ARGV: ttl, item. Returns how often items were deleted, the body, the latest summary before or at the
# item and the item of it, then id, item, id, item, … of the line up to the item.
LINE = (
    _PRELUDE
    + """
local body = redis.call('HGET', meta, 'body')
if not body then return {'missing'} end
if redis.call('HEXISTS', parents, ARGV[2]) == 0 then return {'unknown'} end
local ids = line(ARGV[2])
local summary, at = latest(':summary', ids)
local reply = {'found', redis.call('HGET', meta, 'forgotten') or '0', body, summary, at}
return with_items(reply, ids)
"""
)

# ARGV: ttl, item, summary of all up to it, how often items were deleted when it was begun.
KEEP_SUMMARY = (
    _PRELUDE
    + """
if redis.call('HEXISTS', parents, ARGV[2]) == 0 then return 'unknown' end
if (redis.call('HGET', meta, 'forgotten') or '0') ~= ARGV[4] then return 'unknown' end
redis.call('HSET', known, ARGV[2] .. ':summary', ARGV[3])
redis.call('EXPIRE', known, math.max(redis.call('TTL', meta), 1))
return 'stored'
"""
)
