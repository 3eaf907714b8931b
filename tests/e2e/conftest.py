"""Real clusters, one at a time: one for all tests that leave it running, others for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cluster_home import ClusterHome

from serve_app.models.store import PreparedModel

# Starting a cluster counts as a test's time, and so does each wait for one that recovers.
TEST_S = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(TEST_S))


@pytest.fixture(scope="session")
def prepared_models(bundled_int8: PreparedModel) -> Path:
    """The folder in which the bundled model lies prepared."""
    return bundled_int8.path.parent


class SharedCluster:
    """A cluster that is started for the first test that wants it, and ended by one that doesn't."""

    def __init__(self, new_path: Callable[[], Path], models: Path) -> None:
        self._new_path = new_path
        self._models = models
        self._home: ClusterHome | None = None
        self._running = ExitStack()

    def running(self) -> ClusterHome:
        """Return its home; start it if it doesn't run."""
        if self._home is None:
            home = ClusterHome(self._new_path(), self._models)
            self._running.callback(home.remove)
            self._running.enter_context(_ended_well(home))
            self._home = home
        return self._home

    def end(self) -> None:
        """End it if it runs."""
        self._home = None
        self._running.close()


@contextmanager
def _ended_well(home: ClusterHome) -> Iterator[None]:
    with home.attended() as up:
        run_id = home.state().run_id
        yield
    # Ctrl-C has ended it, whatever the tests did to it.
    assert up.returncode == 0
    home.assert_nothing_runs(run_id)


@pytest.fixture(scope="session")
def shared_cluster(
    tmp_path_factory: pytest.TempPathFactory, prepared_models: Path
) -> Iterator[SharedCluster]:
    made = SharedCluster(lambda: tmp_path_factory.mktemp("shared") / "home", prepared_models)
    yield made
    made.end()


@pytest.fixture
def cluster(shared_cluster: SharedCluster) -> ClusterHome:
    """A running cluster as `parley up` makes it; a test may harm it if it waits until it is well."""
    return shared_cluster.running()


@pytest.fixture(scope="module")
def alone(shared_cluster: SharedCluster) -> None:
    """Leaves processors, memory and time limits to a cluster of the test's own."""
    shared_cluster.end()


@pytest.fixture(scope="module")
def new_home(
    alone: None, tmp_path_factory: pytest.TempPathFactory, prepared_models: Path
) -> Iterator[Callable[[], ClusterHome]]:
    """Makes homes in which nothing runs yet."""
    homes: list[ClusterHome] = []

    def make() -> ClusterHome:
        homes.append(ClusterHome(tmp_path_factory.mktemp("own") / "home", prepared_models))
        return homes[-1]

    yield make
    for home in homes:
        home.remove()
