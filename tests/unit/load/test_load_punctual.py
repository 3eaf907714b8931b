"""The client is scheduled first while it measures, and whatever it starts is not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from load import punctual as punctual_module
from load.punctual import punctual

ASK = "import os; print(os.sched_getscheduler(0))"


def test_a_client_is_scheduled_first_while_it_measures_and_what_it_starts_is_not() -> None:
    before = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    with punctual() as first:
        policy = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
        child = subprocess.run([sys.executable, "-c", ASK], capture_output=True, check=True)
    if first:
        assert policy == os.SCHED_RR
    else:  # nobody here may
        assert (policy, os.sched_getparam(0).sched_priority) == before
    assert int(child.stdout) == os.SCHED_OTHER
    assert (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority) == before


def test_a_client_that_may_not_be_scheduled_first_measures_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(punctual_module.os, "sched_setscheduler", refused)
    with punctual() as first:
        assert not first


def test_the_schedule_is_as_before_whatever_goes_wrong() -> None:
    before = os.sched_getscheduler(0)
    with pytest.raises(ValueError, match="wrong"), punctual():
        raise ValueError("wrong")
    assert os.sched_getscheduler(0) == before
