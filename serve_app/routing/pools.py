"""Which models the settings have served, and by which pools of generators."""

from __future__ import annotations

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
        place: keys under which the settings say what it computes with.
    """

    deployment: str
    settings: Settings
    place: tuple[str, ...]


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
            Its `param` is the path of what is wrong.
    """
    also, pools = settings.models.also, settings.models.pools
    if twice := sorted(also.keys() & pools.keys()):
        msg = "models.also has that key too; take another one."
        raise _refused(f"models.pools.{twice[0]}", msg)
    own = {FIRST: settings} | {key: _of_model(settings, key, model) for key, model in also.items()}
    _refuse_equal_names(own)
    members = {
        key: [Pool(f"Generator-{key}", its, ("models", "also", key))]
        if key
        else [Pool("Generator", its, ("model",))]
        for key, its in own.items()
    }
    for key, pool in pools.items():
        wanted = pool.model or FIRST
        if wanted not in own:
            known = ", ".join(also) or "none"
            msg = f"models.also has no {wanted}, only {known}; null means the first model."
            raise _refused(f"models.pools.{key}.model", msg)
        its = _of_pool(own[wanted], key, pool)
        members[wanted].append(Pool(f"Generator-{key}", its, ("models", "pools", key)))
    return tuple(
        Served(key, f"Tokenizer-{key}" if key else "Tokenizer", tuple(members[key])) for key in own
    )


def _of_model(settings: Settings, key: str, model: FurtherModel) -> Settings:
    first = settings.model
    changed = first.model_copy(
        update={
            "source": model.source,
            "name": model.name or key,
            "precision": model.precision,
            "form": model.form,
            "engines": model.engines or first.engines,
        }
    )
    place = f"models.also.{key}.generator"
    generator = _engine(settings, model.generator, place, changed.name)
    return settings.model_copy(update={"model": changed, "generator": generator})


def _of_pool(settings: Settings, key: str, pool: FurtherPool) -> Settings:
    model = settings.model
    precision = pool.precision or model.precision
    changed = model.model_copy(
        update={
            "precision": precision,
            # A form goes with a precision: another one may not have it.
            "form": pool.form or (model.form if precision == model.precision else None),
            "engines": pool.engines or model.engines,
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
        msg = "max_cached_tokens must be at least max_len; raise it, or lower max_len."
        raise _refused(place, msg)
    if engine.backend == "simulated" and name != "simulated":
        msg = (
            "it answers with noise: give the model the name simulated too, so that nobody takes it "
            "for one."
        )
        raise _refused(f"{place}.backend", msg)
    return engine


def _refuse_equal_names(own: dict[str, Settings]) -> None:
    """Compare the names that the settings know; a first model without one brings its own along."""
    seen: set[str] = set()
    for key, its in own.items():
        if (name := its.model.name) is None:
            continue
        if name in seen:
            msg = f"another model is called {name!r} too; give this one another name."
            raise _refused(f"models.also.{key}", msg)
        seen.add(name)


def _refused(place: str, message: str) -> ConfigError:
    return ConfigError(f"{place}: {message}", param=place)
