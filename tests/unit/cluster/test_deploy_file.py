"""Deploy files: strict, with lines, and changed only in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from serve_app.cluster.deploy_file import (
    Overrides,
    default_deploy_file,
    load_deployment,
    without_inherited,
)
from serve_app.errors import ConfigError
from serve_app.settings import deploy_folder
from serve_app.state.keys import KeyRing


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path / "home"))


@pytest.fixture
def edited(tmp_path: Path):
    """Write `deploy/local.yaml` with one text replaced by another."""

    def write(old: str, new: str) -> Path:
        text = default_deploy_file().read_text()
        assert old in text
        file = tmp_path / "edited.yaml"
        file.write_text(text.replace(old, new, 1))
        return file

    return write


def line_of(file: Path, text: str) -> int:
    return next(n for n, line in enumerate(file.read_text().splitlines(), 1) if text in line)


def refusal(file: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        load_deployment(file)
    return refused.value.message


def generator(deployment) -> dict:
    return next(
        one
        for one in deployment.config["applications"][0]["deployments"]
        if one["name"] == "Generator"
    )


def test_serve_takes_the_file_that_ships() -> None:
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(yaml.safe_load(default_deploy_file().read_text()))
    assert schema.applications[0].deployment_names == [
        "Ingress",
        "Dialogue",
        "Tokenizer",
        "Generator",
    ]
    assert all(one.is_autoscaling_configured() for one in schema.applications[0].deployments)
    load_deployment()


@pytest.mark.parametrize(
    ("old", "new", "key", "says"),
    [
        ("proxy_location:", "proxy_locatoin:", "proxy_locatoin", "did you mean `proxy_location`?"),
        ("  port: 8000", "  prt: 8000", "prt", "did you mean `port`?"),
        ("  port: 8000", "  port: many", "port: many", "valid integer"),
        ("  port: 8000", "  port: 80000", "port: 80000", "1 to 65535"),
        ("    route_prefix:", "    rute_prefix:", "rute_prefix", "`route_prefix`"),
        ("max_replicas: 2", "max_replica: 2", "max_replica: 2", "did you mean `max_replicas`?"),
        ("num_cpus: 0.1", "num_cpu: 0.1", "num_cpu: 0.1", "did you mean `num_cpus`?"),
        ("max_replicas: 2", "max_replicas: 0", "max_replicas: 0", "greater than 0"),
        ("min_replicas: 1", "min_replicas: 3", "autoscaling_config", "max_replicas (2) must be"),
        ("target_ttft_s: 2", "target_tfft_s: 2", "target_tfft_s", "did you mean `target_ttft_s`?"),
        ("target_ttft_s: 2.0", "target_ttft_s: soon", "target_ttft_s", "must be a number"),
        ("  utilisation: 0.8", "  utilisation: 8", "  utilisation: 8", "to 1 at most"),
        (
            "autoscaling:ScaleByWork",
            "autoscaling:ScaleByWrok",
            "ScaleByWrok",
            "there is no serve_app",
        ),
        (
            "autoscaling:ScaleByWork",
            "autoscalign:ScaleByWork",
            "autoscalign:",
            "there is no serve_app",
        ),
        ("app:build", "app:biuld", "app:biuld", "it is serve_app.app:build"),
        ("            env_vars:", "            env_var:", "env_var:", "did you mean `env_vars`?"),
        ("- name: Dialogue", "- name: Dialog", "- name: Dialog", "no deployment of that name"),
        ("        slots: 32", "        slot: 32", "slot: 32", "did you mean `slots`?"),
        ("        slots: 32", "        slots: -1", "slots: -1", "greater than 0"),
        ("      generator:", "      genrator:", "genrator:", "did you mean `generator`?"),
        ("precision: int8", "precision: int9", "precision: int9", "'int8-w8a8' or 'fp8-w8a8'"),
        ("        slots: 32", "        slots: 3\n        slots: 4", "slots: 4", "twice"),
        ("encoding: TEXT", "encodin: TEXT", "encodin", "Extra inputs"),
        (
            "      generator:",
            "      redis: {url: 'redis://:secret@h'}\n      generator:",
            "redis: {url",
            "PARLEY_REDIS_URL",
        ),
    ],
)
def test_a_fault_is_named_with_file_and_line(edited, old, new, key, says) -> None:
    file = edited(old, new)
    told = refusal(file)
    assert says in told
    assert f"{file}:{line_of(file, key)}: " in told
    assert "secret" not in told


SEVERAL = deploy_folder() / "several-models.yaml"


@pytest.mark.parametrize(
    ("old", "new", "key", "says"),
    [
        ("also:", "more:", "more:", "unknown key"),
        ("unrounded:", "Un Rounded:", "Un Rounded:", "small letters, digits and dashes"),
        ("            source: bundled\n", "", "unrounded:", "Field required"),
        ("precision: fp32", "precisoin: fp32", "precisoin", "did you mean `precision`?"),
        ("slots: 8", "slot: 8", "slot: 8", "did you mean `slots`?"),
        ("max_cached_tokens: 8192", "max_cached_tokens: 1024", "generator:", "at least max_len"),
        (
            "        also:",
            "        pools: {cpu: {model: unronded}}\n        also:",
            "pools:",
            "models.also has no unronded, only unrounded",
        ),
        (
            "        also:",
            "        pools: {unrounded: {}}\n        also:",
            "pools:",
            "that key too",
        ),
        (
            "name: Generator-unrounded",
            "name: Generator-rounded",
            "name: Generator-rounded",
            "there are Dialogue, Generator, Generator-unrounded, Ingress",
        ),
        (
            "target_ongoing_requests: 128",
            "target_ongoing_requests: 641",
            "target_ongoing_requests: 641",
            "a replica takes 640 requests at once",
        ),
    ],
)
def test_a_fault_among_several_models_is_named_with_file_and_line(
    tmp_path: Path, old, new, key, says
) -> None:
    text = SEVERAL.read_text()
    assert old in text
    file = tmp_path / "edited.yaml"
    file.write_text(text.replace(old, new, 1))
    told = refusal(file)
    assert says in told
    lines = file.read_text().splitlines()
    places = [f"{file}:{n}: " for n, line in enumerate(lines, 1) if key in line]
    assert any(place in told for place in places), told


def test_a_deployment_that_stands_there_twice_is_named_where_it_is_repeated(edited) -> None:
    file = edited("- name: Dialogue", "- name: Ingress")
    told = refusal(file)
    second = [
        n for n, line in enumerate(file.read_text().splitlines(), 1) if "name: Ingress" in line
    ][1]
    assert f"{file}:{second}: " in told
    assert "write it once" in told


@pytest.mark.parametrize("initial", [0, 3])
def test_no_replica_can_begin_outside_of_its_bounds(edited, initial: int) -> None:
    bounds = "max_replicas: 2"
    file = edited(bounds, f"{bounds}\n          initial_replicas: {initial}")
    told = refusal(file)
    assert f"{file}:{line_of(file, 'autoscaling_config')}: " in told
    assert f"initial_replicas ({initial})" in told


def test_a_pool_beside_others_may_not_go_to_no_replica(edited) -> None:
    file = edited("      sampling:", "      models: {pools: {more: {}}}\n      sampling:")
    load_deployment(file)
    text = file.read_text()
    before, generator, after = text.partition("- name: Generator")
    file.write_text(before + generator + after.replace("min_replicas: 1", "min_replicas: 0", 1))
    told = refusal(file)
    assert "a pool beside others keeps a replica" in told
    assert f"{file}:{line_of(file, 'min_replicas: 0')}: " in told


@pytest.mark.parametrize(
    ("old", "new", "key", "says"),
    [
        (
            "          num_gpus: 0.5\n",
            "",
            "name: Generator-small",
            "Ray shows Generator-small none",
        ),
        ("num_gpus: 0.5", "num_gpus: 0", "num_gpus: 0", "none without num_gpus"),
        ("num_gpus: 0.5", "num_gpus: 2", "num_gpus: 2", "a replica computes on one GPU"),
        ("num_gpus: 0.5", "num_gpus: 1.5", "num_gpus: 1.5", "a replica computes on one GPU"),
        (
            "            form: standard\n",
            "            form: cpu\n",
            "num_gpus: 0.5",
            "the GPU would stand idle",
        ),
        (
            "        pools: {}\n",
            "        pools: {more: {model: small}}\n",
            "more: {model: small}",
            "Ray shows Generator-more none",
        ),
    ],
)
def test_a_generator_has_a_gpu_or_a_part_of_one_if_that_computes_it(
    tmp_path: Path, old: str, new: str, key: str, says: str
) -> None:
    text = (deploy_folder() / "gpu-pool.yaml").read_text()
    assert text.count(old) == 1
    file = tmp_path / "edited.yaml"
    file.write_text(text.replace(old, new))
    assert f"{file}:{line_of(file, key)}: " in (told := refusal(file))
    assert says in told


def test_a_generator_may_not_be_ended_while_its_replies_drain(edited) -> None:
    file = edited("      sampling:", "        drain_timeout_s: 130\n      sampling:")
    told = refusal(file)
    ends = "graceful_shutdown_timeout_s: 130"
    last = [n for n, line in enumerate(file.read_text().splitlines(), 1) if ends in line][-1]
    assert f"{file}:{last}: " in told
    assert "for 130 s (generator.drain_timeout_s)" in told
    file.write_text(file.read_text().replace("drain_timeout_s: 130", "drain_timeout_s: 129"))
    load_deployment(file)


def test_cores_are_divided_among_the_generators_of_all_models() -> None:
    def threads(file: Path) -> int:
        args = load_deployment(file).config["applications"][0]["args"]
        return args["generator"]["threads"]

    alone, several = threads(default_deploy_file()), threads(SEVERAL)
    assert several == max(1, alone // 2)


def test_every_fault_is_named_at_once(edited, tmp_path: Path) -> None:
    file = edited("proxy_location:", "proxy_locatoin:")
    file.write_text(file.read_text().replace("        slots: 32", "        slot: 32"))
    assert len(refusal(file).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1, 2", "not valid YAML"),
        ("- 1\n- 2\n", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("applications: []\n", "no application is named `parley`"),
        ("a: &a [*a]\napplications: []\n", "unknown key"),
        ("a: \x00\n", "not valid YAML"),
        ("{[1]: 2}\n", "not valid YAML"),
        ("!!python/object/apply:os.system [true]\n", "not valid YAML"),
    ],
)
def test_what_is_no_deploy_file_is_refused_with_a_sentence(tmp_path: Path, text, says) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    assert says in refusal(file)


def test_the_command_line_goes_above_the_environment_and_that_above_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PARLEY_GENERATOR_SLOTS", "5")
    monkeypatch.setenv("PARLEY_MODEL_PRECISION", "int8")
    deployment = load_deployment(overrides=Overrides(precision="fp32", port=9999))
    args = deployment.config["applications"][0]["args"]
    assert args["generator"]["slots"] == 5
    assert args["model"]["precision"] == "fp32"
    assert deployment.settings.model.precision == "fp32"
    assert deployment.config["http_options"]["port"] == deployment.port == 9999


def test_what_is_deployed_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARLEY_REDIS_URL", "redis://:swordfish@10.0.0.1:6379/0")
    deployment = load_deployment()
    assert "swordfish" not in json.dumps(deployment.config)
    assert "swordfish" not in repr(deployment)
    url = deployment.settings.redis.url
    assert url is not None
    assert url.get_secret_value().startswith("redis://:swordfish")


def test_deployed_args_build_the_same_settings_again() -> None:
    from serve_app.settings import Settings

    deployment = load_deployment(overrides=Overrides(replicas=2))
    args = deployment.config["applications"][0]["args"]
    again = Settings.load(args)
    assert again.model_dump(exclude={"generator": {"threads"}}) == deployment.settings.model_dump(
        exclude={"generator": {"threads"}}
    )
    assert again.generator.threads >= 1


def test_replicas_raise_both_bounds_and_find_room() -> None:
    deployment = load_deployment(overrides=Overrides(replicas=3))
    scaling = generator(deployment)["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (3, 3)
    assert deployment.cpus >= 4


def test_cores_are_divided_among_generators_unless_the_file_says_otherwise(edited) -> None:
    alone = load_deployment(overrides=Overrides(replicas=1))
    many = load_deployment(overrides=Overrides(replicas=1000))
    fixed = load_deployment(edited("threads: 0", "threads: 3"))

    def threads(deployment) -> int:
        return deployment.config["applications"][0]["args"]["generator"]["threads"]

    assert threads(many) == 1
    assert threads(alone) >= threads(many)
    assert threads(fixed) == 3


def test_a_wrong_override_is_refused_with_a_sentence() -> None:
    with pytest.raises(ConfigError, match="precision"):
        load_deployment(overrides=Overrides(precision="int3"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])  # noqa: S104
def test_an_open_address_needs_an_api_key(edited, host: str, tmp_path: Path) -> None:
    file = edited("host: 127.0.0.1", f"host: '{host}'")
    assert f"{file}:{line_of(file, host)}: http_options.host" in refusal(file)
    KeyRing(tmp_path / "home" / "keys.json").create("me", "default")
    assert load_deployment(file).host == host
    file.write_text(
        file.read_text().replace("    args:", "    args:\n      auth: {required: false}")
    )
    assert "auth.required is false" in refusal(file)


def test_an_open_address_of_the_command_line_is_not_blamed_on_the_file() -> None:
    with pytest.raises(ConfigError) as refused:
        load_deployment(overrides=Overrides(host="0.0.0.0"))  # noqa: S104
    assert refused.value.message.startswith("--host 0.0.0.0 can be reached")
    assert str(default_deploy_file()) not in refused.value.message


def test_serves_own_default_address_counts_as_open(edited) -> None:
    assert "0.0.0.0 can be reached" in refusal(edited("  host: 127.0.0.1\n", ""))


def test_a_relative_model_path_is_made_absolute(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "m.gguf").touch()
    monkeypatch.chdir(tmp_path)
    deployment = load_deployment(overrides=Overrides(model="./m.gguf"))
    assert deployment.settings.model.source == str(tmp_path / "m.gguf")


def test_a_replica_gets_no_variables_of_its_own_that_it_inherits_anyway() -> None:
    config = load_deployment().config
    ingress = config["applications"][0]["deployments"][0]["ray_actor_options"]
    own = ingress["runtime_env"]["env_vars"]
    own |= {"MORE": "1", "OTHER": "1"}
    (edge,) = own.keys() - {"MORE", "OTHER"}

    def variables(**environment: str) -> dict[str, str] | None:
        changed = without_inherited(config, environment)
        options = changed["applications"][0]["deployments"][0]["ray_actor_options"]
        assert options["num_cpus"] == ingress["num_cpus"]
        return options["runtime_env"].get("env_vars")

    assert variables() == own
    assert variables(**{edge: own[edge], "OTHER": "2"}) == {"MORE": "1", "OTHER": "1"}
    assert variables(**own) is None
    assert set(own) == {edge, "MORE", "OTHER"}  # the file's own content stays as it was
