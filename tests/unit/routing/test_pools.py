"""What the settings have served: models, their pools, and what each computes with."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from serve_app.errors import ConfigError
from serve_app.routing.pools import FIRST, Served, served_models
from serve_app.settings import Settings


def served(**sections: Any) -> dict[str, Served]:
    return {model.key: model for model in served_models(Settings.load(sections))}


def refusal(**sections: Any) -> tuple[str | None, str]:
    with pytest.raises(ConfigError) as refused:
        served(**sections)
    return refused.value.param, refused.value.message


def test_without_further_ones_there_is_one_model_of_one_pool() -> None:
    (model,) = served().values()
    assert (model.key, model.tokenizer) == (FIRST, "Tokenizer")
    assert [pool.deployment for pool in model.pools] == ["Generator"]
    assert model.settings.model.source == "bundled"


def test_a_further_model_has_deployments_of_its_own_and_the_first_engine_s_limits() -> None:
    models = served(
        generator={"slots": 7, "max_len": 512},
        models={
            "also": {"big": {"source": "org/big", "precision": "fp32", "generator": {"slots": 2}}}
        },
    )
    assert list(models) == [FIRST, "big"]
    big = models["big"]
    assert (big.tokenizer, big.pools[0].deployment) == ("Tokenizer-big", "Generator-big")
    assert (big.settings.model.source, big.settings.model.precision) == ("org/big", "fp32")
    assert big.settings.model.name == "big"
    assert (big.settings.generator.slots, big.settings.generator.max_len) == (2, 512)
    assert models[FIRST].settings.generator.slots == 7


def test_a_pool_differs_from_its_model_in_what_is_said_of_it() -> None:
    models = served(
        model={"precision": "fp16", "form": "standard", "engines": "/engines"},
        generator={"slots": 64},
        models={
            "also": {"small": {"source": "org/small", "precision": "int8", "form": "cpu"}},
            "pools": {
                "cpu": {"precision": "int8", "generator": {"slots": 4}},
                "more": {},
                "spare": {"model": "small"},
            },
        },
    )
    own, cpu, more = models[FIRST].pools
    assert [pool.deployment for pool in (own, cpu, more)] == [
        "Generator",
        "Generator-cpu",
        "Generator-more",
    ]
    # A form goes with its precision, and not with another one.
    assert (cpu.settings.model.precision, cpu.settings.model.form) == ("int8", None)
    assert (more.settings.model.precision, more.settings.model.form) == ("fp16", "standard")
    assert cpu.settings.generator.slots == 4
    assert more.settings.generator.slots == 64
    assert models["small"].pools[1].settings.model == models["small"].settings.model


def test_engines_are_shared_in_the_first_model_s_folder_unless_another_is_named() -> None:
    also = {"a": {"source": "a/b"}, "b": {"source": "a/b", "engines": "/own"}}
    models = served(model={"engines": "/shared"}, models={"also": also})
    assert [str(models[key].settings.model.engines) for key in ("a", "b")] == ["/shared", "/own"]


def test_a_sequence_fits_every_pool_of_its_model() -> None:
    models = served(models={"pools": {"short": {"generator": {"max_len": 256}}}})
    assert models[FIRST].max_len == 256


@pytest.mark.parametrize(
    ("models", "param", "says"),
    [
        ({"pools": {"cpu": {"model": "none"}}}, "models.pools.cpu.model", "no none"),
        (
            {"also": {"cpu": {"source": "a/b"}}, "pools": {"cpu": {}}},
            "models.pools.cpu",
            "that key too",
        ),
        (
            {"also": {"a": {"source": "a/b", "name": "b"}, "b": {"source": "a/b"}}},
            "models.also.b",
            "called 'b' too",
        ),
        (
            {"also": {"a": {"source": "a/b", "generator": {"max_len": 65536}}}},
            "models.also.a.generator",
            "at least max_len",
        ),
        (
            {"pools": {"noise": {"generator": {"backend": "simulated"}}}},
            "models.pools.noise.generator.backend",
            "noise",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_its_place(
    models: dict[str, Any], param: str, says: str
) -> None:
    place, message = refusal(models=models)
    assert place == param
    assert message.startswith(f"{param}: ")
    assert says in message


def test_a_further_model_may_not_take_the_first_ones_name() -> None:
    place, _ = refusal(model={"name": "x"}, models={"also": {"a": {"source": "a/b", "name": "x"}}})
    assert place == "models.also.a"


def test_changes_stay_changes_when_settings_are_written_and_read_again() -> None:
    models = {"also": {"a": {"source": "a/b", "generator": {"slots": 2}}}}
    settings = Settings.load({"models": models, "generator": {"max_len": 512}})
    for again in (
        Settings.load(settings.model_dump(mode="json", exclude={"redis": {"url"}})),
        pickle.loads(pickle.dumps(settings)),  # noqa: S301
    ):
        _, further = served_models(again)
        assert (further.settings.generator.slots, further.settings.generator.max_len) == (2, 512)
