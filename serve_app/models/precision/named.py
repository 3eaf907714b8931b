"""Every precision by its name."""

from __future__ import annotations

from collections.abc import Callable

from serve_app.errors import ModelError
from serve_app.models.precision.base import Precision, PrecisionName
from serve_app.models.precision.fp32 import Fp32
from serve_app.models.precision.int8 import Int8Blocks

__all__ = ["precision_named"]

_PRECISIONS: dict[PrecisionName, Callable[[], Precision]] = {
    "fp32": Fp32,
    "int8": Int8Blocks,
}


def precision_named(name: PrecisionName) -> Precision:
    """Return the precision of a name.

    Raises:
        ModelError: there is no such precision.
    """
    try:
        return _PRECISIONS[name]()
    except KeyError:
        msg = f"Unknown precision {name!r}; choose one of {', '.join(_PRECISIONS)}."
        raise ModelError(msg) from None
