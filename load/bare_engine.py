"""Runs the engine of one generator replica, in this process and on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ValidationError
from tokenizers import Tokenizer

from load.engine_chats import EngineChats, EngineLevel
from load.floor import Demand
from load.machine import Machine, measure_machine
from load.supply import Plan
from load.workload import Workload
from serve_app.errors import ConfigError
from serve_app.generation.backends.opening import open_backend
from serve_app.generation.engine import EngineConfig
from serve_app.models.tokenizer_files import TOKENIZER_FILE
from serve_app.routing.serving import served_model, tokenizer_info
from serve_app.settings import Settings
from serve_app.tokenization.tokenizer import ChatTokenizer

__all__ = ["BareRun", "engine_settings", "run_bare_engine"]


@dataclass(frozen=True, slots=True)
class BareRun:
    """What came of the bare engine.

    Attributes:
        model: name, precision and form of what it ran.
        threads: of the runtime.
        levels: one per level of concurrency.
        demand: what the decoder asks of a machine.
        machine: what this one can do.
    """

    model: str
    threads: int
    levels: list[EngineLevel]
    demand: Demand
    machine: Machine


def engine_settings(**wanted: dict[str, object]) -> Settings:
    """Return the settings of a replica with some of them changed; None changes nothing.

    Args:
        wanted: values by section and key. They go above the environment.

    Raises:
        ConfigError: a value makes no sense.
    """
    settings = Settings.load()
    tree = settings.model_dump()
    for section, values in wanted.items():
        tree[section] |= {key: value for key, value in values.items() if value is not None}
    sections = {name: type(getattr(settings, name)) for name in wanted}
    try:
        checked = {name: kind.model_validate(tree[name]) for name, kind in sections.items()}
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        msg = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}."
        raise ConfigError(msg) from None
    return settings.model_copy(update=checked)


def run_bare_engine(
    settings: Settings,
    workload: Workload,
    plan: Plan,
    *,
    on_level: Callable[[int], None] = lambda _: None,
) -> BareRun:
    """Hold the workload's conversations with the engine that the settings describe.

    The model is prepared first if it isn't yet.

    Args:
        settings: which model and which limits, as for a generator replica.
        workload: what is said.
        plan: how much of it.
        on_level: told of each level's concurrency before it begins.

    Raises:
        ModelError: the model can't be prepared.
        ParleyError: what the engine refuses; see `EngineChats.measure`.
    """
    wanted = settings.generator
    model = served_model(settings)
    info = tokenizer_info(model, settings)
    threads = wanted.threads or len(os.sched_getaffinity(0))
    backend = open_backend(model, threads=threads, engines=settings.model.engines)
    config = EngineConfig.of(wanted, max_len=info.context_length)
    text = Tokenizer.from_file(str(model.path / TOKENIZER_FILE))
    with EngineChats(backend, config, ChatTokenizer(model.path, info), decode=text.decode) as chats:
        levels = chats.measure(workload, plan, on_level=on_level)
    return BareRun(
        model=f"{model.manifest.name} ({model.manifest.precision}, {model.manifest.form})",
        threads=threads,
        levels=levels,
        demand=Demand.of(model.manifest, backend.token_bytes),
        machine=measure_machine(threads, integers=model.manifest.form == "native"),
    )
