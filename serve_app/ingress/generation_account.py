"""What a generation adds to its request's account: the generator's own times, and the way there and back."""

from __future__ import annotations

from collections.abc import Sequence

from serve_app.ingress.request_account import RequestAccount
from serve_app.ingress.streams import TokenStream

__all__ = ["book_generation"]


def book_generation(
    account: RequestAccount, opened_at: float, streams: Sequence[TokenStream]
) -> None:
    """Book what lies between the opening of a generation and the end of the stream that ended last.

    Of several streams, which run side by side, that one alone makes the request take as long as it does.
    Where no stream has ended, nobody has reported anything, and nothing is booked.

    Args:
        account: the request's.
        opened_at: when its first stream was about to be submitted, in `time.perf_counter` seconds.
        streams: all of them.
    """
    begun = [stream.begun_at for stream in streams if stream.begun_at is not None]
    if begun:
        account.first_token_s = account.since_arrival(min(begun))
    ended = [(stream.finished_at, stream) for stream in streams if stream.finished_at is not None]
    if not ended:
        return
    finished_at, last = max(ended, key=lambda pair: pair[0])
    account.moves = last.moves
    times = last.times
    begun_at = finished_at if last.begun_at is None else last.begun_at
    # The way to the generator, and that of the first frame; then how much longer the last one's was.
    there_s = begun_at - opened_at - times.queue_s - times.prefill_s - times.moving_before_s
    after_s = finished_at - begun_at
    moving_s = times.moving_s - times.moving_before_s
    decode_s = after_s - moving_s - times.redone_s if last.moves else times.decode_s
    back_s = after_s - moving_s - times.redone_s - decode_s
    if back_s < 0:  # the first frame was on its way for longer than the last one
        there_s, back_s = there_s + back_s, 0.0
    account.book("submit", transfer_s=max(there_s, 0.0))
    account.book("queue", compute_s=times.queue_s)
    account.book("prefill", compute_s=times.prefill_s)
    account.book("decode", transfer_s=back_s, compute_s=decode_s)
    if last.moves:
        account.book("move", transfer_s=times.moving_s, compute_s=times.redone_s)
    account.generated(finished_at)
