"""Measures Parley, and whatever else speaks its wire format, under a load that can be compared.

| command | what it measures |
| --- | --- |
| `python -m load.bench` | a server, through HTTP |
| `python -m load.engine` | the bare engine, in this process; on a GPU, its steps against their floor |
| `python -m load.serving` | everything but the model, through HTTP |
| `python -m load.startup` | how soon `parley up` answers, and what memory all of it takes |
| `python -m load.compare` | Parley beside llama.cpp's server, as ratios |
| `python -m load.quality` | what a precision costs in quality |
| `python -m load.understanding` | how well turns are understood, and how fast |
| `python -m load.open_loop` | a server, at rates of requests that don't wait for it |
| `python -m load.overload` | what becomes of three times what a service can carry |
| `python -m load.soak` | what a service holds on to over time |
| `python -m load.scaling` | a cluster that goes from one generator to two, and back |
| `python -m load.capacity` | nothing: it works out how many replicas users need |
| `python -m load.chaos` | what clients see while processes are killed |
| `python -m load.proof` | whether what clients are promised holds while everything dies |
| `python -m load.autoscale` | nothing: it simulates a day under the autoscaling policy |

`bench`, `engine`, `serving`, `startup` and `compare` hold the conversations of one `workload`, so their
figures compare. `locustfile.py` is for `locust -f`, see docs/load.md.
"""

from __future__ import annotations

__all__: list[str] = []
