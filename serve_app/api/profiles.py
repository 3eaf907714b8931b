"""The profiles API: what is known of a user, as they may read, correct and erase it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from serve_app.api.body import WireModel
from serve_app.errors import InvalidRequest
from serve_app.state.profiles import Fact

__all__ = ["ProfileRequest", "checked_user", "deleted_profile", "profile_object"]

_LONGEST_USER = 512


class FactText(WireModel):
    """A fact as it is sent; what GET gave out can be sent back."""

    text: str = Field(min_length=1, max_length=300)
    id: str | None = Field(None, max_length=128)
    source: Literal["said", "written"] | None = None
    response: str | None = Field(None, max_length=256)
    created_at: int | None = None


class ProfileRequest(WireModel):
    """Body of PUT /v1/profiles/{user}."""

    facts: Annotated[list[FactText], Field(max_length=1024)]

    def texts(self, *, most: int) -> tuple[str, ...]:
        """Return the facts' texts.

        Args:
            most: most facts that a profile holds.

        Raises:
            InvalidRequest: there are more.
        """
        if len(self.facts) > most:
            msg = (
                f"'facts' has {len(self.facts)} entries; a profile holds at most {most} (setting "
                "dialogue.profile_facts)."
            )
            raise InvalidRequest(msg, param="facts", code="invalid_value")
        return tuple(fact.text for fact in self.facts)


def checked_user(user: str) -> str:
    """Return a user's name if it can be one.

    Raises:
        InvalidRequest: it can't.
    """
    if len(user) > _LONGEST_USER:
        msg = f"A user's name has at most {_LONGEST_USER} characters; use the one in your requests."
        raise InvalidRequest(msg, param="user", code="invalid_value")
    return user


def profile_object(user: str, facts: Sequence[Fact]) -> dict[str, Any]:
    """Return a profile as a client sees it."""
    return {
        "object": "profile",
        "user": user,
        "facts": [
            {
                "id": fact.id,
                "text": fact.text,
                "source": fact.source,
                "response": fact.response,
                "created_at": fact.created_at,
            }
            for fact in facts
        ],
    }


def deleted_profile(user: str) -> dict[str, Any]:
    """Return what DELETE answers."""
    return {"object": "profile.deleted", "user": user, "deleted": True}
