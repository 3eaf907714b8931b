"""What the engine takes of a GPU's memory, reckoned before anything is taken."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.errors import ConfigError
from serve_app.models.decoder_interface import DecoderInterface

__all__ = ["SAMPLING_BYTES", "MemoryPlan"]

SAMPLING_BYTES = 9
"""Per slot and token of the vocabulary: a bias, a count, and whether it is a stop token."""

# Choosing tokens makes copies of the logits while it runs: sorted, summed, and what they came from.
_SCRATCH_BYTES = 48
# For CUDA's own needs and captured graphs; what is left over stays free.
_RESERVE_PART = 0.05
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Memory by what it is for, in bytes. Weights that can't stay on the host are there already.

    Attributes:
        slot: of one slot: K/V, logits, and the state of choosing tokens.
        fixed: of everything that doesn't depend on the number of slots.
        free: what there is.
        streamable: of weights that may stay on the host; none of them is on the device yet.
        kept: of those, what the operator wants on the device, or None for what slots leave room for.
        share: of the device's memory that this is planned for.
    """

    slot: int
    fixed: int
    free: int
    streamable: int = 0
    kept: int | None = None
    share: float = 1.0

    @classmethod
    def of(
        cls,
        interface: DecoderInterface,
        *,
        blocks: int,
        block_tokens: int,
        activations: int,
        free: int,
        streamable: int = 0,
        kept: int | None = None,
        share: float = 1.0,
    ) -> MemoryPlan:
        """Reckon.

        Args:
            interface: of a graph in the standard form.
            blocks: pieces of prefixes.
            block_tokens: tokens of one.
            activations: what the engine's contexts work in.
            free: what there is once the weights are loaded that can't stay on the host.
            streamable: of weights that can.
            kept: of those, what is to be on the device; None for what slots leave room for.
            share: of the device's memory that `free` is out of.
        """
        logits = interface.vocab_size * 4
        return cls(
            slot=interface.context_length * interface.token_bytes
            + logits
            + interface.vocab_size * (SAMPLING_BYTES + _SCRATCH_BYTES),
            fixed=activations
            + blocks * block_tokens * interface.token_bytes
            + logits
            + int(_RESERVE_PART * free),
            free=free,
            streamable=streamable,
            kept=None if kept is None else min(kept, streamable),
            share=share,
        )

    def slots(self, wanted: int) -> int:
        """Return how many slots there will be: those wanted, or fewer where memory is short.

        Raises:
            ConfigError: there is no room for one.
        """
        room = max(0, (self.free - self.fixed - (self.kept or 0)) // self.slot)
        if room:
            return min(wanted, room)
        whose = "The GPU has" if self.share >= 1 else f"A share of {self.share:g} of the GPU has"
        msg = (
            f"{whose} {self.free / _GIB:.2f} GiB free beside the model's weights. One slot takes "
            f"{self.slot / _GIB:.2f} GiB, and everything but slots {self.fixed / _GIB:.2f} GiB: lower "
            "generator.prefix_cache_mb, prepare the model with a smaller --cache-length, or free memory "
            "on the GPU."
        )
        if self.kept:
            msg = (
                f"{msg} {self.kept / _GIB:.2f} GiB are for weights: lower generator.gpu_weights_mb, or "
                "set it to null."
            )
        elif self.share < 1:
            msg = f"{msg} Or give the replica more of a GPU: num_gpus, in its ray_actor_options."
        elif not self.streamable:
            msg = f"{msg} A model that is too large for it takes an engine with --weight-streaming."
        raise ConfigError(msg, param="generator.slots")

    def resident(self, slots: int) -> int:
        """Return the bytes of streamable weights that stay on the device beside so many slots.

        Slots come first: a weight that is read from the host costs time, and a slot that isn't there
        refuses a request.
        """
        if self.kept is not None:
            return self.kept
        return max(0, min(self.streamable, self.free - self.fixed - slots * self.slot))
