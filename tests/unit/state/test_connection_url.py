"""Redis' URL out of a file, as a mounted secret is one: read where it is needed, and told to nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.errors import ConfigError
from serve_app.settings import Settings
from serve_app.state.connection import RedisPool, named_url

URL = "rediss://parley:hunter2hunter2@redis:6379/0"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "url"
    file.write_text(f"{URL}\n")
    monkeypatch.setenv("PARLEY_REDIS_URL_FILE", str(file))
    return file


def test_the_url_in_a_file_is_taken_and_stands_in_no_settings(file: Path, tmp_path: Path) -> None:
    settings = Settings.load()
    assert settings.redis.url is None
    assert "hunter2" not in settings.model_dump_json()
    assert "hunter2" not in repr(settings)
    url = named_url(settings.redis)
    assert url is not None
    assert url.get_secret_value() == URL
    assert "hunter2" not in repr(url)
    pool = RedisPool.open(settings.redis, tmp_path)
    assert pool.where == "redis:6379"
    assert "hunter2" not in repr(pool)


def test_a_url_that_is_given_itself_goes_before_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARLEY_REDIS_URL", "redis://127.0.0.1:1/0")
    url = named_url(Settings.load().redis)
    assert url is not None
    assert url.get_secret_value() == "redis://127.0.0.1:1/0"


def test_a_file_may_be_named_in_the_deploy_file_too(file: Path) -> None:
    url = named_url(Settings.load({"redis": {"url_file": str(file)}}).redis)
    assert url is not None
    assert url.get_secret_value() == URL


def test_no_file_is_no_url() -> None:
    assert named_url(Settings.load().redis) is None


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "No such file"), (b"", "it is empty"), (b" \n", "it is empty"), (b"\xff", "no text")],
)
def test_a_file_that_holds_no_url_is_named_with_what_to_do(
    file: Path, content: bytes | None, says: str
) -> None:
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=says) as refused:
        named_url(Settings.load().redis)
    assert str(file) in refused.value.message
    assert refused.value.param == "redis.url_file"


def test_what_is_no_url_is_refused_without_being_quoted(file: Path, tmp_path: Path) -> None:
    file.write_text("hunter2hunter2")
    with pytest.raises(ConfigError) as refused:
        RedisPool.open(Settings.load().redis, tmp_path)
    assert "hunter2" not in refused.value.message
