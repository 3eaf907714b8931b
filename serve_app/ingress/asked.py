"""What a request for a response asks for, and where the response is kept."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.api.responses import ResponseRequest

__all__ = ["Asked"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for, and where it is kept.

    Attributes:
        tenant: whose it is.
        request: as it came.
        response: id of the response.
        place: the conversation that the turn belongs to, known to clients or not; None for what is
            on its own.
        stored: whether the response is kept.
        claim: key of the idempotency record that led here.
        created: Unix seconds.
        model: key of the model that answers.
    """

    tenant: str
    request: ResponseRequest
    response: str
    place: str | None
    stored: bool
    claim: str | None
    created: int
    model: str

    @property
    def joins(self) -> bool:
        """Whether the turn becomes part of a conversation."""
        return self.stored or self.request.conversation is not None
