"""The log of a replica as Serve sets it up."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.serve._private.logging_utils import ServeComponentType, configure_component_logger
from ray.serve.schema import LoggingConfig

from serve_app.settings import TelemetrySettings
from serve_app.telemetry import logs


@dataclass
class ReplicaLog:
    """The log file of a replica; configure it, and have Parley use it.

    Attributes:
        folder: where its file is.
    """

    folder: Path

    def configure(self, encoding: str = "TEXT", level: str = "DEBUG", buffer: int = 1) -> None:
        """Set Serve's logger up as Serve does in a replica."""
        configure_component_logger(
            component_name="parley_Ingress",
            component_id="r1",
            component_type=ServeComponentType.REPLICA,
            logging_config=LoggingConfig(
                encoding=encoding,
                log_level=level,
                logs_dir=str(self.folder),
                enable_access_log=False,
            ),
            max_bytes=1 << 30,
            backup_count=1,
            buffer_size=buffer,
        )

    def use(self, **settings: Any) -> None:
        """Have Parley take it over."""
        telemetry = TelemetrySettings.model_validate(settings)
        logs.use(telemetry, deployment="Ingress", replica="r1")

    def text(self) -> str:
        for handler in logging.getLogger("ray.serve").handlers:
            handler.flush()
        files = list(self.folder.glob("replica_*.log"))
        return "".join(file.read_text(encoding="utf-8") for file in files)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]
