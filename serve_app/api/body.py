"""From the bytes of a request body to a validated model, or to an error that names the fault.

The rules are the same for every API:

- A parameter that nobody knows is refused by name.
- A parameter that OpenAI knows and Parley doesn't offer is listed in its model's `NEUTRAL` with
  the values that ask for nothing. Frameworks send those by default; anything else is refused.
- `null` means "not given".
- Types are strict: `"1"`, `1.0` and `true` are no integers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from serve_app.errors import BodyTooDeep, InvalidRequest, UnsupportedParameter

__all__ = [
    "FieldPath",
    "Neutral",
    "WireModel",
    "at_most",
    "fault",
    "parse_body",
    "refuse_unless_neutral",
    "validated",
]

FieldPath = tuple[str | int, ...]
"""Where in a body something stands: names and indices from the outside in."""

Neutral = Mapping[str, tuple[object, ...]]
"""Parameters that aren't offered, each with the values besides null that ask for nothing."""

_QUOTE, _COLON = b'":'
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1

_LONGEST_NAME = 64
_PYDANTIC_SPEAK = re.compile(r"^\w+ should ")
_EXPECTED = {
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "float_type": "must be a number",
    "int_from_float": "must be an integer",
    "int_type": "must be an integer",
    "list_type": "must be an array",
    "model_type": "must be an object",
    "string_type": "must be a string",
}


class WireModel(BaseModel):
    """Base of everything that arrives in a body.

    Attributes:
        NEUTRAL: what is known and not offered, and accepted as long as it asks for nothing.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, protected_namespaces=()
    )

    NEUTRAL: ClassVar[Neutral] = {}

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_asks_for_nothing(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        given = {}
        for name, value in data.items():
            if name in cls.NEUTRAL:
                refuse_unless_neutral((name,), value, cls.NEUTRAL[name])
            elif name not in cls.model_fields:
                raise fault("unsupported_parameter", "is not a parameter here: remove it", name)
            elif value is not None:
                given[name] = value
        return given


Model = TypeVar("Model", bound=WireModel)


def parse_body(data: bytes, model: type[Model], *, max_depth: int) -> Model:
    """Parse and validate a request body.

    Args:
        data: the body as it arrived.
        model: what it should be.
        max_depth: most arrays and objects inside one another; checked before anything is built.

    Raises:
        BodyTooDeep: if it is nested deeper.
        UnsupportedParameter: if it has a parameter that is unknown or not offered.
        InvalidRequest: if it is no JSON object, names a key twice, lacks a parameter, or has one
            of a wrong type or value. `param` is its path, like `messages[0].content`.
    """
    structure = _outside_strings(data)
    if np.cumsum(_STEP[structure], dtype=np.int32).max(initial=0) > max_depth:
        msg = f"The body is nested deeper than {max_depth} levels: flatten it."
        raise BodyTooDeep(msg)
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        msg = f"The body is not valid JSON: {error}."
        raise InvalidRequest(msg, code="invalid_json") from None
    if not isinstance(value, dict):
        msg = "The body must be a JSON object."
        raise InvalidRequest(msg, code="invalid_json")
    # Outside of strings every colon stands behind a key.
    if np.count_nonzero(structure == _COLON) != _count_keys(value):
        name = _shown(_duplicate_key(data))
        msg = f"'{name}' stands twice in one JSON object: send it once."
        raise InvalidRequest(msg, param=name, code="invalid_json")
    return validated(value, model)


def validated(value: object, model: type[Model]) -> Model:
    """Validate parsed parameters.

    Raises:
        UnsupportedParameter: naming a parameter that is unknown or not offered.
        InvalidRequest: naming a parameter that is missing or wrong.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        raise _as_invalid_request(details[0]) from None


def fault(code: str, predicate: str, *path: str | int) -> PydanticCustomError:
    """Return an error for a validator to raise; it reads `'PARAM' PREDICATE.`.

    Args:
        code: `unsupported_parameter`, `invalid_type` or `invalid_value`.
        predicate: what is wrong with the parameter, without its name.
        path: the way from the validated field inwards to the fault.
    """
    return PydanticCustomError(
        "parley", "{predicate}", {"code": code, "predicate": predicate, "path": path}
    )


def at_most(limit: int) -> BeforeValidator:
    """Return a validator that counts an array's or object's entries before looking at any."""

    def check(value: object) -> object:
        if isinstance(value, list | dict) and len(value) > limit:
            raise fault("invalid_value", f"must have at most {limit} entries, not {len(value)}")
        return value

    return BeforeValidator(check)


def refuse_unless_neutral(path: FieldPath, value: object, neutral: tuple[object, ...]) -> None:
    """Accept null and the neutral values of a parameter that isn't offered.

    Raises:
        PydanticCustomError: inside of validators, for any other value.
    """
    # orjson tells true from 1 and 1 from 1.0, which == doesn't.
    if value is None or orjson.dumps(value) in [orjson.dumps(item) for item in neutral]:
        return
    accepted = " or ".join(orjson.dumps(item).decode() for item in (None, *neutral))
    predicate = f"is not supported: leave it out (or send {accepted})"
    raise fault("unsupported_parameter", predicate, *path)


def _outside_strings(data: bytes) -> NDArray[np.uint8]:
    """Return the bytes of a JSON text that stand in none of its strings.

    Takes about ten nanoseconds a byte, whatever the bytes are.
    """
    # Pairs of backslashes first, from the left: what is left in front of a quote escapes it.
    unescaped = data.replace(rb"\\", b"__").replace(rb"\"", b"__")
    characters = np.frombuffer(unescaped, np.uint8)
    inside = np.logical_xor.accumulate(characters == _QUOTE)
    return characters[~inside]


def _count_keys(value: dict[str, Any]) -> int:
    count = 0
    pending: list[Any] = [value]
    while pending:
        item = pending.pop()
        if type(item) is dict:
            count += len(item)
            pending.extend(item.values())
        elif type(item) is list:
            pending.extend(item)
    return count


def _duplicate_key(data: bytes) -> str:
    """Return a key that stands twice in one object, in a body that has such a key.

    Parsers disagree about which of two equal keys counts, so what one component checked could be
    other than what the next one uses.
    """
    twice: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                twice.append(key)
            seen.add(key)

    json.loads(data, object_pairs_hook=look)
    return twice[0]


def _as_invalid_request(error: ErrorDetails) -> InvalidRequest:
    kind, context = error["type"], error.get("ctx", {})
    param = _dotted((*error["loc"], *context.get("path", ())))
    subject = f"'{param}'" if param else "The body"
    if kind == "missing":
        msg = f"{subject} is required."
        return InvalidRequest(msg, param=param, code="missing_required_parameter")
    if kind == "parley":
        msg = f"{subject} {context['predicate']}."
        if context["code"] == "unsupported_parameter":
            return UnsupportedParameter(msg, param=param)
        return InvalidRequest(msg, param=param, code=context["code"])
    predicate = _EXPECTED.get(kind) or _PYDANTIC_SPEAK.sub(
        "must ", error["msg"].split(" after ")[0]
    )
    code = "invalid_type" if kind in _EXPECTED else "invalid_value"
    return InvalidRequest(f"{subject} {predicate}.", param=param, code=code)


def _dotted(path: FieldPath) -> str:
    """Write a path the way OpenAI does: `messages[0].content`."""
    # Behind a key that is itself at fault, pydantic puts "[key]".
    named = [part for part in path if part != "[key]"]
    parts = [f"[{part}]" if isinstance(part, int) else f".{_shown(part)}" for part in named]
    return "".join(parts).removeprefix(".")


def _shown(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"
