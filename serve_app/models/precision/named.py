"""Every precision by its name and the form of the graph that it is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from serve_app.errors import ModelError
from serve_app.models.decoder_interface import Form
from serve_app.models.element_types import FloatName
from serve_app.models.precision.base import FloatArray, Precision, PrecisionName
from serve_app.models.precision.floating_point import FloatingPoint
from serve_app.models.precision.int8 import Int8Blocks
from serve_app.models.precision.quantized import QuantizedWeights
from serve_app.models.precision.quantized_products import QuantizedProducts

__all__ = ["calibrated", "forms_with", "precision_named", "require_form", "states_of"]

_Inputs = Mapping[str, FloatArray]

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
_CALIBRATED: Mapping[PrecisionName, Callable[[_Inputs], Precision]] = {
    "int8-w8a8": QuantizedProducts.int8_calibrated,
    "fp8-w8a8": QuantizedProducts.fp8_calibrated,
}
"""Precisions that have to know how large the inputs of products get: of the standard form, all of them."""

_KNOWN: Mapping[Form, tuple[PrecisionName, ...]] = {
    form: (*precisions, *(_CALIBRATED if form == "standard" else ()))
    for form, precisions in _PRECISIONS.items()
}


def calibrated(name: PrecisionName) -> bool:
    """Tell whether a precision has to know how large the inputs of products get."""
    return name in _CALIBRATED


def forms_with(name: PrecisionName) -> tuple[Form, ...]:
    """Return the forms that have a precision, of which there are none for an unknown name."""
    return tuple(form for form, precisions in _KNOWN.items() if name in precisions)


def require_form(name: PrecisionName, form: Form) -> None:
    """Refuse a precision that a form doesn't have.

    Raises:
        ModelError: there is no such form or precision, or the form doesn't have it.
    """
    if form not in _KNOWN:
        msg = f"Unknown form {form!r}; choose one of {', '.join(_KNOWN)}."
        raise ModelError(msg)
    others = forms_with(name)
    if not others:
        known = dict.fromkeys(name for each in _KNOWN.values() for name in each)
        msg = f"Unknown precision {name!r}; choose one of {', '.join(known)}."
        raise ModelError(msg)
    if form not in others:
        msg = (
            f"The {form} form has no {name}; choose precision {' or '.join(_KNOWN[form])}, "
            f"or the {' or '.join(others)} form."
        )
        raise ModelError(msg)


def states_of(name: PrecisionName, form: Form) -> FloatName:
    """Return the element type of states and caches in a precision as a form has it.

    Raises:
        ModelError: there is no such form or precision, or the form doesn't have it.
    """
    return precision_named(name, form, {}).dtype


def precision_named(name: PrecisionName, form: Form, inputs: _Inputs | None = None) -> Precision:
    """Return the precision of a name as a form has it.

    Args:
        name: the precision.
        form: the form.
        inputs: for one that is `calibrated`, see `measure_inputs`.

    Raises:
        ModelError: there is no such form or precision, or the form doesn't have it.
    """
    require_form(name, form)
    if name not in _CALIBRATED:
        return _PRECISIONS[form][name]()
    if inputs is None:
        msg = f"{name} rounds inputs that have to be measured first"
        raise ValueError(msg)
    return _CALIBRATED[name](inputs)
