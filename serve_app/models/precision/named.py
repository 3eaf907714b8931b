"""Every precision by its name and the form of the graph that it is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from serve_app.errors import ModelError
from serve_app.models.decoder_interface import Form
from serve_app.models.precision.base import Precision, PrecisionName
from serve_app.models.precision.floating_point import FloatingPoint
from serve_app.models.precision.int8 import Int8Blocks
from serve_app.models.precision.quantized import QuantizedWeights

__all__ = ["forms_with", "precision_named"]

_PRECISIONS: Mapping[Form, Mapping[PrecisionName, Callable[[], Precision]]] = {
    "cpu": {"fp32": lambda: FloatingPoint("float32"), "int8": Int8Blocks},
    "native": {"int8": Int8Blocks},
    "standard": {
        "fp32": lambda: FloatingPoint("float32"),
        "fp16": lambda: FloatingPoint("float16"),
        "bf16": lambda: FloatingPoint("bfloat16"),
        "int8": QuantizedWeights.int8,
        "fp8": QuantizedWeights.fp8,
    },
}


def forms_with(name: PrecisionName) -> tuple[Form, ...]:
    """Return the forms that have a precision, of which there are none for an unknown name."""
    return tuple(form for form, precisions in _PRECISIONS.items() if name in precisions)


def precision_named(name: PrecisionName, form: Form) -> Precision:
    """Return the precision of a name as a form has it.

    Raises:
        ModelError: there is no such form or precision, or the form doesn't have it.
    """
    if form not in _PRECISIONS:
        msg = f"Unknown form {form!r}; choose one of {', '.join(_PRECISIONS)}."
        raise ModelError(msg)
    others = forms_with(name)
    if not others:
        known = dict.fromkeys(name for each in _PRECISIONS.values() for name in each)
        msg = f"Unknown precision {name!r}; choose one of {', '.join(known)}."
        raise ModelError(msg)
    if form not in others:
        msg = (
            f"The {form} form has no {name}; choose precision {' or '.join(_PRECISIONS[form])}, "
            f"or the {' or '.join(others)} form."
        )
        raise ModelError(msg)
    return _PRECISIONS[form][name]()
