"""One conversation as its user steers it: say, retry, begin again, keep, load."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import yaml

from serve_app.cli.chat_client import ChatClient, Delta, Said, Usage
from serve_app.errors import InvalidRequest

__all__ = ["ChatSession"]

_FIRST_ITEMS = 20  # as many as a conversation may be created with; the rest goes with the next turn
_ROLES = ("system", "user", "assistant")
_OWN_FIELDS = ("model", "conversation", "input", "stream", "store")


class ChatSession:
    """A conversation that the server stores.

    It is created by the first thing said. Changing what was said (retry, another system prompt, a
    loaded file) begins a new conversation with the old one's messages; the old one stays as it was.

    The server stores whole turns only. A question whose reply fails or is interrupted is kept here:
    `retry` asks it again; if something else is said instead, what was heard of the reply stays in
    the conversation, and a question of which nothing was heard does not.

    Args:
        client: the server.
        conversation: id of a stored conversation to go on with.
        model: name of the model; None takes the first one that is served.

    Attributes:
        conversation: id of the stored conversation, or None before anything was said.
        parameters: further fields of each request, such as temperature.
    """

    def __init__(
        self, client: ChatClient, conversation: str | None = None, model: str | None = None
    ) -> None:
        self._client = client
        self._model = client.model(model)
        self._carried: list[Said] = []
        self._unfinished: str | None = None  # what was said last, until its reply is whole
        self._heard: list[str] = []  # of that reply
        self.conversation = conversation
        self.parameters: dict[str, object] = {}

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._model

    def say(self, text: str) -> Generator[Delta | Usage, None, None]:
        """Say something and stream the reply; closing the iterator cancels it.

        Raises:
            ParleyError: the server refuses, fails, or is gone.
        """
        self._carried += self._partial_turn()
        self._unfinished, self._heard = text, []
        if self.conversation is None:
            self.conversation = self._client.create_conversation(self._carried[:_FIRST_ITEMS])
            self._carried = self._carried[_FIRST_ITEMS:]
        items = [*self._carried, Said("user", text)]
        for event in self._client.respond(self._model, self.conversation, items, self.parameters):
            if isinstance(event, Usage):
                # All of it is stored with the turn now.
                self._carried = []
                self._forget_unfinished()
            else:
                self._heard.append(event.text)
            yield event

    def retry(self) -> str:
        """Take back the last turn, whole or not, and return what the user had said in it.

        Raises:
            InvalidRequest: nothing was said yet.
        """
        if (unfinished := self._unfinished) is not None:
            self._forget_unfinished()
            return unfinished
        items = self.items()
        for position in range(len(items) - 1, -1, -1):
            if items[position].role == "user":
                self._branch(items[:position])
                return items[position].content
        msg = "There is nothing to retry yet."
        raise InvalidRequest(msg)

    def new(self) -> None:
        """Begin a new conversation."""
        self._begin([])

    def set_system(self, text: str) -> None:
        """Put a system prompt in front of the conversation; an empty one removes it."""
        rest = [item for item in self._finished() if item.role != "system"]
        self._branch([Said("system", text), *rest] if text else rest)

    def set_parameter(self, assignment: str) -> None:
        """Set a field of the requests to come from `name=value`; `name=` removes it.

        Raises:
            InvalidRequest: it is no assignment.
        """
        name, equals, value = assignment.partition("=")
        if not equals or not name.isidentifier():
            msg = f"`{assignment}` is no parameter; write it as temperature=0.7."
            raise InvalidRequest(msg)
        if name in _OWN_FIELDS:
            msg = f"The chat sets {name} itself."
            raise InvalidRequest(msg)
        if value:
            self.parameters[name] = _typed(name, value)
        else:
            self.parameters.pop(name, None)

    def items(self) -> list[Said]:
        """Return everything said so far, oldest first."""
        return [*self._finished(), *self._partial_turn()]

    def save(self, file: Path) -> int:
        """Write the conversation as JSON Lines, one message a line, and return how many.

        Raises:
            OSError: the file can't be written.
        """
        items = self.items()
        lines = [
            json.dumps({"role": item.role, "content": item.content}, ensure_ascii=False)
            for item in items
        ]
        # Half a surrogate pair becomes the escape that JSON has for it.
        text = "".join(f"{line}\n" for line in lines)
        file.write_text(text, encoding="utf-8", errors="backslashreplace")
        return len(items)

    def load(self, file: Path) -> int:
        """Begin a new conversation with the messages of a saved one and return how many.

        Raises:
            InvalidRequest: the file is not what `save` writes.
            OSError: the file can't be read.
        """
        items = []
        # As bytes, so that nothing but a line feed ends a line, and what is no text has a line too.
        for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                message = json.loads(line)
                item = Said(message["role"], message["content"])
            except (ValueError, LookupError, TypeError, RecursionError):
                item = Said("", "")
            if item.role not in _ROLES or not isinstance(item.content, str):
                msg = (
                    f"{file}:{number} is no message; a line is a JSON object with role and content."
                )
                raise InvalidRequest(msg)
            items.append(item)
        self._begin(items)
        return len(items)

    def _finished(self) -> list[Said]:
        stored = self._client.items(self.conversation) if self.conversation else []
        return [*stored, *self._carried]

    def _partial_turn(self) -> list[Said]:
        heard = "".join(self._heard)
        if self._unfinished is None or not heard:
            return []
        return [Said("user", self._unfinished), Said("assistant", heard)]

    def _forget_unfinished(self) -> None:
        self._unfinished, self._heard = None, []

    def _begin(self, items: list[Said]) -> None:
        self._branch(items)
        self._forget_unfinished()

    def _branch(self, items: list[Said]) -> None:
        self.conversation = None
        self._carried = items


def _typed(name: str, value: str) -> object:
    """Read numbers, true, lists and plain words the way one types them."""
    try:
        try:
            typed = json.loads(value)
        except ValueError:
            typed = yaml.safe_load(value)
        json.dumps(typed, allow_nan=False)  # what YAML has and JSON hasn't, such as dates
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        msg = f"`{value}` is no value for {name}; write text with spaces or signs in double quotes."
        raise InvalidRequest(msg) from None
    return typed
