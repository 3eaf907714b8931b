"""What a checkpoint is to become, as far as that is known without opening it."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.errors import ModelError
from serve_app.kernels import library
from serve_app.models.architecture import Architecture
from serve_app.models.decoder_interface import Form
from serve_app.models.manifest import Manifest
from serve_app.models.precision.base import PrecisionName
from serve_app.models.precision.named import forms_with

__all__ = ["Recipe", "chosen_form"]

_DEFAULT_SLOT_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Recipe:
    """Precision and form of a prepared folder.

    Attributes:
        precision: precision of the weights.
        form: form of the decoder graph.
        slot_tokens: tokens of a slot in the standard form, where the model's context allows them.
    """

    precision: PrecisionName
    form: Form
    slot_tokens: int

    @classmethod
    def of(cls, precision: PrecisionName, form: Form | None, cache_length: int | None) -> Recipe:
        """Fill in what nobody has said.

        Args:
            precision: precision of the weights.
            form: form of the decoder graph, or None; see `chosen_form`.
            cache_length: tokens of a slot in the standard form; None takes 2048.

        Raises:
            ModelError: this machine can't run the form.
        """
        return cls(precision, chosen_form(precision, form), cache_length or _DEFAULT_SLOT_TOKENS)

    def cache_length_for(self, architecture: Architecture) -> int | None:
        """Return the tokens of a slot, at most the model's context; None where no form fixes them."""
        if self.form != "standard":
            return None
        return min(self.slot_tokens, architecture.context_length)

    def made(self, manifest: Manifest) -> bool:
        """Say whether following this recipe now, with the same source, would give that folder."""
        return (
            manifest.is_current
            and manifest.form == self.form
            and manifest.precision == self.precision
            and manifest.cache_length == self.cache_length_for(manifest.architecture)
        )


def chosen_form(precision: PrecisionName, wanted: Form | None) -> Form:
    """Return the form to prepare: what is wanted, else the fastest that has the precision.

    Raises:
        ModelError: this machine can't run the form.
    """
    if wanted is None:
        forms = forms_with(precision)
        if "native" in forms and library.available():
            return "native"
        return "cpu" if "cpu" in forms else "standard"
    if wanted == "native" and library.level() is None:
        msg = (
            "Parley's own operators aren't compiled here, and the native form is made of them: "
            "install Parley again, or set model.form to cpu."
        )
        raise ModelError(msg)
    return wanted
