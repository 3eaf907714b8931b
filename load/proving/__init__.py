"""Clients that do what clients do, all at once, to a service whose parts die; and what must hold then.

`machine` draws what happens, `clients` does it, `turns` and `telling` know what clients were told, `verdict`
compares that with what is stored.
"""

from __future__ import annotations

__all__: list[str] = []
