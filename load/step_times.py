"""What an engine's step takes: for itself, for each stream in it, for each prompt token in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from serve_app.errors import ConfigError

__all__ = ["StepTimes"]


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of a step with n streams and m prompt tokens: itself + stream · n + prompt_token · m.

    Attributes:
        itself: what a step takes whatever is in it, mostly reading the weights.
        stream: what each stream that decodes adds.
        prompt_token: what each prompt token adds.
    """

    itself: float
    stream: float
    prompt_token: float

    def step(self, streams: float) -> float:
        """Return the seconds of a step in which so many streams decode and no prompt is computed."""
        return self.itself + self.stream * streams

    @classmethod
    def fit(cls, report: dict[str, Any]) -> StepTimes:
        """Fit them to what `python -m load.engine --json` has written, by least squares.

        Steps with prompts and those without are two equations for each level of concurrency.

        Raises:
            ConfigError: the report is none, or of one level only, which leaves too much open.
        """
        try:
            works = [level["work"] for level in report["engine"]["levels"]]
            rows, seconds = [], []
            for work in works:
                rows.append([work["decodes"], work["decoded"], 0])
                seconds.append(work["decode_s"])
                rows.append([work["mixed"], work["mixed_decoded"], work["prefilled"]])
                seconds.append(work["mixed_s"])
        except (KeyError, TypeError) as error:
            msg = "This is no report of `python -m load.engine --json FILE`; make one, with --concurrency 1,8,32."
            raise ConfigError(msg) from error
        if len(works) < 2:
            msg = "The report has one level of concurrency; measure several, with --concurrency 1,8,32."
            raise ConfigError(msg)
        # Per step, so that every level counts the same, however long it was measured.
        steps = np.array([max(row[0], 1) for row in rows], float)
        left = np.array(rows, float) / steps[:, None]
        found, *_ = np.linalg.lstsq(left, np.array(seconds) / steps, rcond=None)
        itself, stream, prompt_token = np.maximum(found, 0.0).tolist()
        return cls(itself, stream, prompt_token)

    @classmethod
    def read(cls, file: Path) -> StepTimes:
        """Fit them to a report on the disk; see `fit`.

        Raises:
            ConfigError: the file is no such report.
        """
        try:
            report = orjson.loads(file.read_bytes())
        except ValueError as error:
            msg = f"{file} is no JSON; make it with `python -m load.engine --json {file}`."
            raise ConfigError(msg) from error
        return cls.fit(report)
