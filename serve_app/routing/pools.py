"""Which models the settings have served, and by which pools of generators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from serve_app.errors import ConfigError
from serve_app.settings import FurtherModel, FurtherPool, GeneratorSettings, Settings

__all__ = ["FIRST", "Pool", "Served", "served_models"]

FIRST = ""
"""Key of the first model, whose settings are `model` and `generator`."""


@dataclass(frozen=True, slots=True)
class Pool:
    """One Generator deployment: replicas that are all alike.

    Attributes:
        deployment: its name.
        settings: the whole tree, in which `model` and `generator` are the pool's own.
    """

    deployment: str
    settings: Settings


@dataclass(frozen=True, slots=True)
class Served:
    """One model that is served.

    Attributes:
        key: its key in `models.also`, or `FIRST`.
        tokenizer: name of its Tokenizer deployment.
        pools: its pools, the model's own first.
    """

    key: str
    tokenizer: str
    pools: tuple[Pool, ...]

    @property
    def settings(self) -> Settings:
        """The tree in which `model` and `generator` are those of the model's own pool."""
        return self.pools[0].settings

    @property
    def max_len(self) -> int:
        """Most tokens of a sequence that every pool takes: a stream may go from one to another."""
        return min(pool.settings.generator.max_len for pool in self.pools)


def served_models(settings: Settings) -> tuple[Served, ...]:
    """Return the models that are served, the first of them first.

    Raises:
        ConfigError: a pool's model is none of them, two have one name, or an engine can't be as is said.
    """
    if twice := sorted(settings.models.also.keys() & settings.models.pools.keys()):
        msg = f"models.pools.{twice[0]}: models.also has that key too; choose another one."
        raise ConfigError(msg)
    own = {FIRST: settings} | {
        key: _of_model(settings, key, model) for key, model in settings.models.also.items()
    }
    _refuse_equal_names(own)
    further: dict[str, list[Pool]] = {key: [] for key in own}
    for key, pool in settings.models.pools.items():
        wanted = pool.model or FIRST
        if wanted not in own:
            known = ", ".join(settings.models.also) or "none"
            msg = (
                f"models.pools.{key}.model: no model {wanted!r} in models.also; there are {known}."
            )
            raise ConfigError(msg)
        further[wanted].append(Pool(f"Generator-{key}", _of_pool(own[wanted], key, pool)))
    return tuple(
        Served(
            key,
            f"Tokenizer-{key}" if key else "Tokenizer",
            (Pool(f"Generator-{key}" if key else "Generator", own[key]), *further[key]),
        )
        for key in own
    )


def _of_model(settings: Settings, key: str, model: FurtherModel) -> Settings:
    first = settings.model
    changed = first.model_copy(
        update={
            "source": model.source,
            "name": model.name or key,
            "precision": model.precision,
            "form": model.form,
            "engines": model.engines,
        }
    )
    place = f"models.also.{key}.generator"
    generator = _engine(settings, model.generator, place, changed.name)
    return settings.model_copy(update={"model": changed, "generator": generator})


def _of_pool(settings: Settings, key: str, pool: FurtherPool) -> Settings:
    changed = settings.model.model_copy(
        update={
            "precision": pool.precision or settings.model.precision,
            "form": pool.form,
            "engines": pool.engines or settings.model.engines,
        }
    )
    place = f"models.pools.{key}.generator"
    generator = _engine(settings, pool.generator, place, changed.name)
    return settings.model_copy(update={"model": changed, "generator": generator})


def _engine(
    settings: Settings, changes: GeneratorSettings, place: str, name: str | None
) -> GeneratorSettings:
    engine = settings.generator.model_copy(update=changes.model_dump(exclude_unset=True))
    if engine.max_cached_tokens < engine.max_len:
        msg = f"{place}: max_cached_tokens must be at least max_len; raise it, or lower max_len."
        raise ConfigError(msg)
    if engine.backend == "simulated" and name != "simulated":
        msg = (
            f"{place}.backend is simulated, which answers with noise: call the model simulated too, so "
            "that nobody takes it for one."
        )
        raise ConfigError(msg)
    return engine


def _refuse_equal_names(own: dict[str, Settings]) -> None:
    seen: dict[str, str] = {}
    for key, name in _names(own):
        if name in seen:
            msg = f"models.also.{key}: another model is called {name!r} too; give it another name."
            raise ConfigError(msg)
        seen[name] = key


def _names(own: dict[str, Settings]) -> Iterator[tuple[str, str]]:
    """Yield key and name of the models whose name the settings know; others bring theirs along."""
    for key, settings in own.items():
        if settings.model.name is not None:
            yield key, settings.model.name
