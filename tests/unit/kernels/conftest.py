"""The instructions that this processor has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from operator_run import LEVELS

from serve_app.kernels import library
from serve_app.kernels.library import Level


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[Level]:
    """Have the operators use one level after the other."""
    library.use_level(request.param)
    yield request.param
    library.use_level(None)
