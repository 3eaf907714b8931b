"""Runs the scripts on the keys of one conversation, and seals what is kept there."""

from __future__ import annotations

from typing import Any

from serve_app.errors import ConversationNotFound
from serve_app.state.connection import Operation, RedisPool
from serve_app.state.keyspace import ConversationKeys, Keyspace, not_found
from serve_app.state.sealing import Seal

__all__ = ["ConversationScripts"]


class ConversationScripts:
    """What the stores of conversations, turns and responses have in common.

    Args:
        redis: where everything is kept.
        key_prefix: first part of every key.
        ttl_s: a conversation without a time to live of its own is forgotten when nobody touches it
            for this many seconds.
        max_items: most items kept of one conversation; the oldest leave first, except for the
            system messages that it began with.
        seal: encrypts what is kept.
    """

    def __init__(
        self,
        redis: RedisPool,
        *,
        key_prefix: str,
        ttl_s: int,
        max_items: int,
        seal: Seal | None = None,
    ) -> None:
        self.redis = redis
        self.keyspace = Keyspace(key_prefix)
        self.ttl_s = ttl_s
        self.max_items = max_items
        self.seal = seal or Seal()

    def keys(self, tenant: str, conversation: str) -> ConversationKeys:
        """Name the keys of a conversation.

        Raises:
            ConversationNotFound: no conversation of anybody's has such an id.
        """
        return self.keyspace.conversation(tenant, conversation)

    def command(self, script: str, tenant: str, conversation: str, *args: Any) -> tuple[Any, ...]:
        """Return the command that runs a script; the time to live goes before its arguments."""
        keys = self.keys(tenant, conversation).all()
        return ("EVAL", script, len(keys), *keys, self.ttl_s, *args)

    async def run(
        self,
        script: str,
        tenant: str,
        conversation: str,
        *args: Any,
        operation: Operation = "conversation",
    ) -> Any:
        """Run a script that may run twice, in one round trip.

        Raises:
            ConversationNotFound: the script says that it is missing.
            StateUnavailable: Redis can't be reached.
        """
        command = self.command(script, tenant, conversation, *args)
        async with self.redis.client(operation) as client:
            answer = await client.execute_command(*command)  # type: ignore[no-untyped-call]
        self.require_found(answer, conversation)
        return answer

    async def run_beside_profile(
        self, user: str | None, script: str, tenant: str, conversation: str, *args: Any
    ) -> tuple[Any, dict[bytes, bytes]]:
        """Run a script and read a user's profile in the same round trip; see `run`.

        Args:
            user: whose profile; None reads none.
            script: what to run.
            tenant: whose conversation and user they are.
            conversation: its id.
            args: the script's.

        Returns:
            The script's answer, and the profile's facts as they are stored, by id.
        """
        command = self.command(script, tenant, conversation, *args)
        async with self.redis.client("begin") as client, client.pipeline(transaction=False) as pipe:
            pipe.execute_command(*command)
            if user:
                pipe.hgetall(self.keyspace.profile(tenant, user))
            answer, *profile = await pipe.execute()
        self.require_found(answer, conversation)
        return answer, profile[0] if profile else {}

    def require_found(self, answer: Any, conversation: str) -> None:
        """Raise where a script has answered that there is no such conversation.

        Raises:
            ConversationNotFound: it has.
        """
        if answer == b"missing" or (isinstance(answer, list) and answer[0] == b"missing"):
            raise ConversationNotFound(not_found(conversation), param="conversation")
