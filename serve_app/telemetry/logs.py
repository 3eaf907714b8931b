"""What Parley's replicas write into Serve's logs: whose it is, and nothing that mustn't be there.

Serve gives each replica the logger `ray.serve`, with a file of its own behind it, and sends what
libraries print there too. `use` puts a filter in front of that: it adds the ids of what is being worked
for and masks secrets and personal data. What an exception says is left out where it may quote what
somebody wrote.
"""

from __future__ import annotations

import copy
import json
import logging
import logging.handlers
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from serve_app.errors import ParleyError
from serve_app.settings import TelemetrySettings
from serve_app.telemetry.masking import Masks
from serve_app.telemetry.origin import Origin, current
from serve_app.telemetry.trace_context import TraceParent

__all__ = ["LogFilter", "use"]

_SERVE = "ray.serve"
_PARLEY = "serve_app"

LONGEST_MESSAGE = 16_384
"""Signs of a message or a traceback; what is longer is cut in its middle."""

IDS = ("request_id", "http_request_id", "conversation_id", "tenant", "trace_id", "span_id")
"""What records carry, where it is known."""

# Their messages quote the value that they stumbled over.
_QUOTING = (ValueError, TypeError, LookupError)

_ExcInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]


def use(settings: TelemetrySettings, *, deployment: str, replica: str) -> None:
    """Have this process write its log as the settings say.

    Args:
        settings: the form, and whether exceptions may quote.
        deployment: such as Ingress.
        replica: its unique id.
    """
    serve = logging.getLogger(_SERVE)
    for old in [one for one in serve.filters if isinstance(one, LogFilter)]:
        serve.removeFilter(old)
    serve.addFilter(
        LogFilter(
            as_json=settings.log_format == "json",
            quotes=settings.trace_text,
            deployment=deployment,
            replica=replica,
        )
    )
    _follow_level(serve)
    root = logging.getLogger()
    if not any(isinstance(one, _ToServe) for one in root.handlers):
        root.addHandler(_ToServe())


class LogFilter(logging.Filter):
    """Stands in front of all that goes through a logger; see `use`.

    Serve puts new handlers in when its `logging_config` changes, and another level. So the filter looks
    with each record whether they write in the form that is wanted.
    """

    def __init__(self, *, as_json: bool, quotes: bool, deployment: str, replica: str) -> None:
        super().__init__()
        self._masks = Masks()
        self._quotes = quotes
        self._as_json = as_json
        self._json = _JsonFormatter(deployment, replica)

    def filter(self, record: logging.LogRecord) -> bool:
        """Add ids and mask; every record passes."""
        self._dress(logging.getLogger(_SERVE))
        record.msg, record.args = self._masked(_message(record)), None
        if record.exc_info:
            record.exc_text = self._masked(_told(record.exc_info, quotes=self._quotes))
        if record.stack_info:
            record.stack_info = self._masked(record.stack_info)
        for name, value in _ids(current()).items():
            setattr(record, name, value)
        return True

    def _masked(self, text: str) -> str:
        if len(text) > LONGEST_MESSAGE:
            half = LONGEST_MESSAGE // 2
            text = f"{text[:half]} … {text[-half:]}"
        return self._masks.text(text)

    def _dress(self, logger: logging.Logger) -> None:
        _follow_level(logger)
        for handler in logger.handlers:
            writer = handler
            if isinstance(handler, logging.handlers.MemoryHandler):
                # In throughput mode a thousand lines would have to come together first.
                handler.flushLevel = min(handler.flushLevel, logging.WARNING)
                writer = handler.target or handler
            inner = writer.formatter
            if isinstance(inner, (_JsonFormatter, _WithIds)):
                continue
            if self._as_json:
                writer.setFormatter(self._json)
            elif inner is not None and "JSON" not in type(inner).__name__:
                # Serve's own JSON has whatever a record carries.
                writer.setFormatter(_WithIds(inner))


def _follow_level(serve: logging.Logger) -> None:
    """Let Parley's own loggers make only records that Serve's level lets through."""
    own = logging.getLogger(_PARLEY)
    if own.level != serve.level:
        own.setLevel(serve.level)


class _ToServe(logging.Handler):
    """Hands what other loggers say to Serve's, whose level counts.

    Without it they would write to stderr, which Serve reads line by line: a traceback would be many
    records, and nobody would know what may quote a request.
    """

    def emit(self, record: logging.LogRecord) -> None:
        serve = logging.getLogger(_SERVE)
        # One that propagates is no replica's, and would hand it back to this.
        if not serve.propagate and serve.isEnabledFor(record.levelno):
            serve.handle(record)


class _WithIds(logging.Formatter):
    """Writes a line as another formatter does, with the ids behind its message."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        ids = " ".join(f"{name}={value}" for name, value in _carried(record).items())
        if ids:
            record = copy.copy(record)
            record.msg = f"{record.msg} [{ids}]"
        return self._inner.format(record)


class _JsonFormatter(logging.Formatter):
    """Writes one object a line, with the keys that Serve's own JSON has for the same things."""

    def __init__(self, deployment: str, replica: str) -> None:
        super().__init__()
        self._deployment = deployment
        self._replica = replica

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        told: dict[str, Any] = {
            "asctime": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "levelname": record.levelname,
            "message": record.getMessage(),
            "logger": record.name,
            "deployment": self._deployment,
            "replica": self._replica,
            **_carried(record),
            "filename": record.filename,
            "lineno": record.lineno,
            "process": record.process,
            "timestamp_ns": int(record.created * 1e9),
        }
        if record.exc_text:
            told["exc_text"] = record.exc_text
        if record.stack_info:
            told["stack_info"] = record.stack_info
        return json.dumps(told, ensure_ascii=False)


def _carried(record: logging.LogRecord) -> dict[str, str]:
    return {name: value for name in IDS if (value := getattr(record, name, None))}


def _ids(origin: Origin | None) -> dict[str, str]:
    """Return what a record is to carry, by the names of `IDS`."""
    if origin is None:
        return {}
    ids = {
        "request_id": origin.request,
        "http_request_id": origin.http_request,
        "conversation_id": origin.conversation,
        "tenant": origin.tenant,
    }
    if origin.traceparent and (parent := TraceParent.parse(origin.traceparent)):
        ids |= {"trace_id": parent.trace_id, "span_id": parent.span_id}
    return {name: value for name, value in ids.items() if value}


def _message(record: logging.LogRecord) -> str:
    """Return a record's message; one that doesn't fit its arguments must not break what logs it."""
    try:
        return record.getMessage()
    except (TypeError, ValueError, LookupError):
        return str(record.msg)


def _told(exc_info: _ExcInfo | bool | None, *, quotes: bool) -> str:
    """Return a traceback, with what its exceptions say only where that can't be what somebody wrote."""
    error = exc_info[1] if isinstance(exc_info, tuple) else None
    if error is None:
        return ""
    if quotes:
        return "".join(traceback.format_exception(error)).rstrip()
    parts: list[str] = []
    seen: set[int] = set()
    link = ""
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        frames = "".join(traceback.format_tb(at.__traceback__))
        parts.append(f"Traceback (most recent call last):\n{frames}{_said(at)}{link}")
        if at.__cause__ is not None:
            at, link = at.__cause__, "\n\nThe above was the direct cause of:\n"
        elif not at.__suppress_context__:
            at, link = at.__context__, "\n\nWhile that was handled, this happened:\n"
        else:
            at = None
    return "\n".join(reversed(parts))


def _said(error: BaseException) -> str:
    name = type(error).__qualname__
    # Ray's own say what another replica's error said.
    causes = (error, getattr(error, "cause", None))
    if isinstance(error, ParleyError):
        return f"{name}: {error.code}: {error}"
    if any(isinstance(one, _QUOTING) for one in causes):
        return f"{name}: (what it says may quote a request, and is left out)"
    return f"{name}: {error}"
