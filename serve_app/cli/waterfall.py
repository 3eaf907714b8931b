"""The account of a request as a waterfall: on a terminal, through a pipe, and as an SVG picture."""

from __future__ import annotations

import io
import time

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from serve_app.telemetry.account import Account

__all__ = ["picture", "summary", "waterfall"]

_WIDTH = 48
_TRANSFER, _COMPUTE = "cyan", "blue"
_PICTURE_WIDTH = 112
_PICTURE = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, monospace; font-size: {char_height}px;
  line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""rich's own, without the font that it would have fetched from the web."""


def summary(account: Account) -> str:
    """Return a line that says which request it was and what it came to."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(account.created_at))
    parts = [
        f"{account.api} {account.request or account.http_request} at {at}: "
        f"{_ms(account.total_s)} ms"
    ]
    if account.first_token_s is not None:
        parts.append(f"first token after {_ms(account.first_token_s)} ms")
    parts.append(
        f"{account.prompt_tokens} prompt tokens, {account.cached_tokens} of them cached, "
        f"{account.completion_tokens} generated"
    )
    if account.choices > 1:
        parts.append(f"{account.choices} choices, of which the last to end is shown")
    if account.moves:
        parts.append(f"moved {account.moves} times")
    if account.error is not None:
        parts.append(f"failed: {account.error}")
    return "; ".join(parts) + "."


def waterfall(account: Account, *, filled: bool = False) -> Table:
    """Return a row per stage, whose bar begins where the one before it ends, and what is left last.

    Args:
        account: what to show.
        filled: draw bars as coloured areas; else with signs, which need no colours.
    """
    table = Table("stage", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("transfer ms", "compute ms", "share"):
        table.add_column(name, justify="right")
    legend = (Text(" transfer "), Text(" compute"))
    table.add_column(
        Text.assemble(
            _area(1, _TRANSFER, filled=filled),
            legend[0],
            _area(1, _COMPUTE, filled=filled),
            legend[1],
        )
    )
    whole_s = max(account.total_s, 1e-9)
    began_s = 0.0
    for stage in account.stages:
        table.add_row(
            stage.name,
            _ms(stage.transfer_s) if stage.transfer_s else "",
            _ms(stage.compute_s) if stage.compute_s else "",
            f"{stage.total_s / whole_s:.1%}",
            _bar(
                began_s / whole_s,
                (began_s + stage.transfer_s) / whole_s,
                (began_s + stage.total_s) / whole_s,
                filled=filled,
            ),
        )
        began_s += stage.total_s
    table.add_section()
    left = account.unaccounted_s
    table.add_row(Text("unaccounted", style="dim"), "", _ms(left), f"{left / whole_s:.1%}", "")
    transfer_s = sum(stage.transfer_s for stage in account.stages)
    compute_s = sum(stage.compute_s for stage in account.stages)
    table.add_row(Text("all", style="bold"), _ms(transfer_s), _ms(compute_s), "", "")
    return table


def picture(account: Account) -> str:
    """Return the waterfall as SVG."""
    console = Console(record=True, width=_PICTURE_WIDTH, file=io.StringIO(), highlight=False)
    console.print(Text(summary(account)))
    console.print(waterfall(account, filled=True))
    return console.export_svg(title="Where the time went", code_format=_PICTURE)


def _bar(begin: float, middle: float, end: float, *, filled: bool) -> Text:
    """Return a bar between shares of the width; whatever is too short for a cell has a thin one."""
    first, second, last = (round(_WIDTH * share) for share in (begin, middle, end))
    if last == first:
        return Text.assemble(" " * min(first, _WIDTH - 1), ("▏", _COMPUTE))
    if last == first + 1:  # no room for two parts
        second = last if middle - begin > end - middle else first
    return Text.assemble(
        " " * first,
        _area(second - first, _TRANSFER, filled=filled),
        _area(last - second, _COMPUTE, filled=filled),
    )


def _area(cells: int, colour: str, *, filled: bool) -> Text:
    if filled:
        return Text(" " * cells, style=f"on {colour}")
    return Text(("░" if colour == _TRANSFER else "█") * cells, style=colour)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}"
