"""The life of a turn, from its place in the queue to what is stored of it."""

from __future__ import annotations

from serve_app.state.scripts.prelude import step

__all__ = ["ABANDON", "BEGIN", "CANCEL", "COMMIT", "CONCLUDE", "KEEP", "SEIZE"]

# ARGV: ttl, response, owner, lease in ms, what to do while another turn runs ('' for side by side),
# most turns in the queue, where to hang the turn on ('head', 'previous', 'replaces', 'new'), of which
# response, draft of the response or '', user or '', claim or '', body of a new conversation, whether
# the request itself says what to do while another turn runs ('1' or ''), name of the model or '', whether
# the turn was begun before and waits ('1' or ''): if it has ended since, this came too late and must not
# begin it anew.
# Returns ('waits', turns before), or ('go', whether clients can't know it, item before, how many items
# the line has, the conversation's body, the latest state and the item of it, the latest summary and the
# item of it, then the line's id, item, …, then those of the input that is answered again), or what
# stands in the way.
BEGIN = step("""
local response, mode, kind, other = ARGV[2], ARGV[5], ARGV[7], ARGV[8]
local user = redis.call('HGET', meta, 'user')
local nothing = (kind == 'head' or kind == 'new') and 'missing' or 'unknown'
if ARGV[15] == '' and deleted(response) then return {'gone'} end
if redis.call('EXISTS', meta) == 0 then
  if kind ~= 'new' then return {nothing} end
  redis.call('HSET', meta, 'body', ARGV[12], 'hidden', '1', 'pinned', '0')
end
if kind == 'head' and redis.call('HGET', meta, 'hidden') == '1' then return {'missing'} end
if ARGV[10] ~= '' then
  if user and user ~= '' and user ~= ARGV[10] then return {nothing} end
  redis.call('HSET', meta, 'user', ARGV[10])
end
if redis.call('HEXISTS', turns, response .. ':last') == 1 then return {'repeated'} end
local holder = redis.call('HGET', runs, response .. ':owner')
if holder ~= ARGV[3] then
  if ARGV[15] ~= '' and holder ~= '' then return {'lost'} end
  -- Readers may have been told of it: nobody else makes it, even where its owner has died.
  if ARGV[15] == '' and redis.call('HEXISTS', responses, response) == 1 then return {'flies'} end
end
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
if ARGV[14] ~= '' then redis.call('HSET', meta, 'model', ARGV[14]) end
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
    -- A turn that waited was told of: its owner stores how it ended, and must find it there.
    if ARGV[15] == '' then
      release(response)
      redis.call('HDEL', responses, response)
    end
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
redis.call('HSET', runs, response .. ':place', kind)
redis.call('EXPIRE', turns, redis.call('HGET', meta, 'ttl') or ARGV[1])
local state, state_at = latest(':state', ids)
local summary, summary_at = latest(':summary', ids)
local body = redis.call('HGET', meta, 'body')
local reply = {'go', hidden, base, #ids, body, state, state_at, summary, summary_at}
return with_items(with_items(reply, ids), again)
""")

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

# ARGV: ttl, most items, response, owner or '', item before or '=head', the response or '', the state
# behind the turn or '', how many system messages the turn begins with, then id, item, id, item, …
COMMIT = step("""
local response = ARGV[3]
if redis.call('EXISTS', meta) == 0 then return 'missing' end
-- A write even then, so that whoever waits for replicas waits for what was committed before.
-- One that was deleted since is stored too: what it said stayed.
if redis.call('ZSCORE', ended, response)
    or redis.call('HEXISTS', turns, response .. ':said') == 1 then
  touch()
  return 'repeated'
end
if ARGV[4] ~= '' and redis.call('HGET', runs, response .. ':owner') ~= ARGV[4] then
  return 'lost'
end
if clashes(9) then return 'clash' end
pin_first(ARGV[8])
local base = ARGV[5]
if base == '=head' or (base ~= '' and redis.call('HEXISTS', parents, base) == 0) then
  base = head()
end
-- Items that clients have appended while the turn ran go before it: nothing falls off the line.
if redis.call('HGET', runs, response .. ':place') == 'head' and base ~= head()
    and behind(head(), base) then
  base = head()
end
local last = append(base, 9)
if ARGV[7] ~= '' then redis.call('HSET', known, last .. ':state', ARGV[7]) end
redis.call('HSET', turns, response .. ':base', base, response .. ':last', last)
redis.call('ZADD', ended, redis.call('ZSCORE', every, last), response)
if ARGV[6] ~= '' then redis.call('HSET', responses, response, ARGV[6]) end
release(response)
cut_to(ARGV[2])
touch()
return 'stored'
""")

# ARGV: ttl, response, owner, the response as it failed. Where that is stored already, this is sent again
# since its answer was lost.
CONCLUDE = step("""
if redis.call('HGET', runs, ARGV[2] .. ':owner') ~= ARGV[3] then
  return redis.call('HGET', responses, ARGV[2]) == ARGV[4] and 'stored' or 'lost'
end
if redis.call('HEXISTS', responses, ARGV[2]) == 1 then
  redis.call('HSET', responses, ARGV[2], ARGV[4])
end
release(ARGV[2])
touch()
return 'stored'
""")

# ARGV: ttl, response, owner. Undoes what BEGIN did.
ABANDON = step("""
if redis.call('HGET', runs, ARGV[2] .. ':owner') ~= ARGV[3] then return 'lost' end
forget_response(ARGV[2])
if redis.call('HGET', meta, 'hidden') == '1' and redis.call('ZCARD', every) == 0
    and redis.call('HLEN', responses) == 0 then
  drop_conversation()
end
return 'stored'
""")

# ARGV: ttl, response, owner, lease in ms. Takes over a response whose owner has died.
SEIZE = step("""
local stored = redis.call('HGET', responses, ARGV[2])
if not stored then return {'unknown'} end
if redis.call('HEXISTS', runs, ARGV[2] .. ':owner') == 1 and alive(ARGV[2]) then
  return {'alive', stored}
end
if redis.call('HEXISTS', runs, ARGV[2] .. ':owner') == 0 then return {'ended', stored} end
redis.call('HSET', runs, ARGV[2] .. ':owner', ARGV[3], ARGV[2] .. ':lease', now() + ARGV[4])
return {'seized', stored}
""")

# ARGV: ttl, response.
CANCEL = step("""
local stored = redis.call('HGET', responses, ARGV[2])
if not stored then return {'unknown'} end
if redis.call('HEXISTS', runs, ARGV[2] .. ':owner') == 0 then return {'ended', stored} end
redis.call('HSET', runs, ARGV[2] .. ':cancel', 'cancel')
touch()
return {'asked', stored}
""")
