"""What the scripts have in common: the names of a conversation's keys, and functions over them.

KEYS are those of `ConversationKeys.all()`, in that order; ARGV[1] is always the time to live where
the conversation has none of its own.
"""

from __future__ import annotations

__all__ = ["step"]


def step(script: str) -> str:
    """Return a whole script out of what it does itself."""
    return _PRELUDE + script


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

local function drop_journal(response)
  redis.call('DEL', string.sub(meta, 1, -6) .. ':journal:' .. response)
end

-- Nobody makes the response any more: what was there for it to be made goes.
local function release(response)
  redis.call('ZREM', queue, response)
  for _, part in ipairs({':owner', ':lease', ':cancel', ':place'}) do
    redis.call('HDEL', runs, response .. part)
  end
  drop_journal(response)
end

-- Whoever made a turn that is taken for dead may only have been slow. Others go on without it, so it is
-- nobody's from here on: what its owner still wants to store would stand beside what they store.
local function drop_dead()
  for _, response in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
    if not alive(response) then
      redis.call('ZREM', queue, response)
      redis.call('HSET', runs, response .. ':owner', '')
    end
  end
end

-- Whether clients can know it: what is kept for a response alone is hidden.
local function shown()
  return redis.call('HEXISTS', meta, 'body') == 1 and redis.call('HGET', meta, 'hidden') ~= '1'
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

local function behind(item, other)
  for _, id in ipairs(line(item)) do
    if id == other then return true end
  end
  return other == ''
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

-- Deleted responses leave a mark, so that nobody makes them again: that what it said may stay, or that it
-- has said nothing.
local function deleted(response)
  return redis.call('HEXISTS', turns, response .. ':said') == 1
    or redis.call('HEXISTS', turns, response .. ':unsaid') == 1
end

local function drop_item(id)
  redis.call('ZREM', every, id)
  redis.call('ZREM', order, id)
  redis.call('HDEL', items, id)
  redis.call('HDEL', parents, id)
  redis.call('HDEL', known, id .. ':state', id .. ':summary')
end

-- Cuts the oldest items of all lines, but never what is pinned.
local function cut_to(most)
  local excess = redis.call('ZCARD', every) - tonumber(most)
  if excess <= 0 then return end
  local kept = tonumber(redis.call('HGET', meta, 'pinned') or 0)
  for _, id in ipairs(redis.call('ZRANGE', every, kept, kept + excess - 1)) do drop_item(id) end
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
