"""A failed deployment is told with the replica's own error and its log, as Serve reports it."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.cluster.readiness import _refuse_failure
from serve_app.cluster.run_folder import RunFolder
from serve_app.errors import ConfigError

# What Ray Serve 2.60 answers, shortened in the middle.
_MESSAGE = (
    "The deployment failed to start 3 times in a row. This may be due to a problem with its "
    "constructor or initial health check failing. See controller logs for details. Error:\n"
    "\x1b[36mray::ServeReplica:parley:Generator.initialize_and_get_metadata()\x1b[39m (pid=1, ip=…)\n"
    '  File "futures/_base.py", line 456, in result\n'
    "    return self.__get_result()\n"
    "RuntimeError: Traceback (most recent call last):\n"
    '  File "replica.py", line 4008, in _call_func_or_gen\n'
    "    result = callable(*args, **kwargs)\n"
    "             ^^^^^^^^^^^^^^^^^^^^^^^^^\n"
    "serve_app.errors.ModelError: decoder.onnx is missing; prepare the model again."
)


def details(**deployment: object) -> dict:
    healthy = {"name": "Ingress", "status": "HEALTHY", "message": "", "replicas": []}
    return {
        "status": "DEPLOY_FAILED",
        "message": "Failed to update the deployments ['Generator'].",
        "deployments": {"Ingress": healthy, "Generator": {"name": "Generator", **deployment}},
    }


def test_the_replicas_own_error_and_its_log_are_told(tmp_path: Path) -> None:
    dead = {"log_file_path": "/serve/replica_parley_Generator_x.log"}
    application = details(
        status="DEPLOY_FAILED", message=_MESSAGE, replicas=[], recent_dead_replicas=[dead]
    )
    with pytest.raises(ConfigError) as refused:
        _refuse_failure(application, RunFolder(tmp_path))
    assert refused.value.message == (
        "Generator does not start: ModelError: decoder.onnx is missing; prepare the model again.\n"
        f"Its log is {tmp_path}/logs/serve/replica_parley_Generator_x.log."
    )


def test_an_application_that_cannot_be_imported_is_told(tmp_path: Path) -> None:
    application = {
        "status": "DEPLOY_FAILED",
        "message": "Deploying app 'parley' failed with exception:\nTraceback (most recent call last):\n"
        "  File \"x.py\", line 1\nModuleNotFoundError: No module named 'nowhere'\n",
        "deployments": {},
    }
    with pytest.raises(ConfigError, match="ModuleNotFoundError: No module named 'nowhere'"):
        _refuse_failure(application, RunFolder(tmp_path))


def test_a_deployment_that_still_starts_is_no_failure(tmp_path: Path) -> None:
    application = details(status="UPDATING", message="", replicas=[])
    _refuse_failure(application | {"status": "DEPLOYING"}, RunFolder(tmp_path))
