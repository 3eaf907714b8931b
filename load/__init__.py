"""Measures Parley, and whatever else speaks its wire format, under a load that can be compared.

| command | what it measures |
| --- | --- |
| `python -m load.bench` | a server, through HTTP |
| `python -m load.engine` | the bare engine, in this process |
| `python -m load.serving` | everything but the model, through HTTP |
| `python -m load.startup` | how soon `parley up` answers, and what memory all of it takes |
| `python -m load.compare` | Parley beside llama.cpp's server, as ratios |
| `python -m load.quality` | what a precision costs in quality |
| `python -m load.understanding` | how well turns are understood, and how fast |

All but the last two hold the conversations of one `workload`, so their figures compare.
"""

from __future__ import annotations

__all__: list[str] = []
