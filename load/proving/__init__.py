"""Clients that do what clients do, all at once, to a service whose parts die; and what must hold then.

`machine` draws what happens, `run` and `clients` do it, `turns` and `telling` know what clients were told,
`verdict` compares that with what is `stored`, and replies with what the `oracle` foresees.
"""

from __future__ import annotations

__all__: list[str] = []
