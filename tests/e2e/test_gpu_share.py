"""A generator replica knows which part of a GPU Ray gave it. Ray only counts: no GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

_SHARES = """
import json
import ray
from serve_app.generation.deployment import _own_gpu_share

ray.init(address="local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
given = (0, 0.25, 0.5, 1)
print(json.dumps([ray.get(ray.remote(num_gpus=part)(_own_gpu_share).remote()) for part in given]))
"""


def test_a_replica_knows_the_part_of_a_gpu_that_it_was_given(alone: None, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0" * 64)
    # A process of its own: it is Ray's driver, with a token that this one's Ray doesn't know.
    done = subprocess.run(
        [sys.executable, "-c", _SHARES],
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [1.0, 0.25, 0.5, 1.0]
