"""Addresses of stores: unknown kinds are refused, and secrets are in no text."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import NameEntryError, ParameterDBError
from headrace.services import ParameterDBClient, RedisNameRecordRepository, make_repository
from headrace.services.addresses import scheme_of, shows_hosts, without_secrets

SECRET = "hunter2"
#: Addresses with what of them may be shown.
SHOWN = {
    "redis://host:6379/2": "redis://host:6379/2",
    "redis://[::1]:6379/1": "redis://[::1]:6379/1",
    f"redis://user:{SECRET}@host:6379/2": "redis://host:6379/2",
    f"rediss://:{SECRET}@host": "rediss://host",
    f"redis://host/0?password={SECRET}": "redis://host/0",
    f"redis://host/0#{SECRET}": "redis://host/0",
    f"unix://user:{SECRET}@/run/redis.sock?db=1": "unix:///run/redis.sock",
    f"mongodb://user:{SECRET}@one:1,two:2/db?tlsCertificateKeyFilePassword={SECRET}": "mongodb://one:1,two:2/db",
    f"mongodb+srv://user:{SECRET}@cluster.example.org/": "mongodb+srv://cluster.example.org/",
}
#: Passwords that are not percent-encoded, and what is no address at all.
WRONG = [
    f"redis://user:{SECRET}",
    f"redis://user:{SECRET}/0",
    f"redis://user:a/{SECRET}@host",
    f"redis://user:12/{SECRET}@host",
    f"redis://user:a?{SECRET}@host",
    f"redis://user:a#{SECRET}@host",
    f"redis://user:{SECRET}@{SECRET}@host",
    f"redis://user:{SECRET}@host:port",
    f"redis://host?password=a@{SECRET}",
]


def test_the_shown_part_of_an_address_has_no_secret() -> None:
    assert {address: without_secrets(address) for address in SHOWN} == SHOWN
    assert all(shows_hosts(address) for address in SHOWN)
    assert {without_secrets(address) for address in WRONG} == {"redis://…"}
    assert without_secrets(SECRET) == "…"
    assert (scheme_of("REDIS://x"), scheme_of("/a//b"), scheme_of("a/b://c")) == ("redis", "", "")


def refusal_of(call: Any) -> str:
    """Returns all that a program that does not catch the error prints of it."""
    with pytest.raises(ValueError, match="expected") as caught:
        call()
    return "".join(traceback.format_exception(caught.value)) + str(caught.value.__context__)


@pytest.mark.parametrize("address", WRONG)
def test_wrong_addresses_are_refused_without_their_secrets(address: str, tmp_path: Path) -> None:
    pytest.importorskip("redis")
    pytest.importorskip("pymongo")
    for mongo in (address.replace("redis", "mongodb"), address.replace("redis", "mongodb+srv")):
        said = refusal_of(lambda mongo=mongo: ParameterDBClient("experiment", "trial", tmp_path, metadata=mongo))
        assert "percent-encoded" in said
        assert SECRET not in said
    said = refusal_of(lambda: make_repository(address))
    assert "percent-encoded" in said
    assert SECRET not in said


def test_options_that_redis_does_not_have_are_refused() -> None:
    pytest.importorskip("redis")
    for option in ("no_such=1", "db=first"):
        said = refusal_of(lambda option=option: make_repository(f"redis://u:{SECRET}@host/0?{option}"))
        assert "redis://host/0 is no address of a Redis server" in said
        assert SECRET not in said


def test_unknown_schemes_are_refused_with_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for address in (f"http://u:{SECRET}@host/a", f"s3://{SECRET}/names", f"redis:/u:{SECRET}@host", f"redis:{SECRET}"):
        said = refusal_of(lambda address=address: make_repository(address))
        assert '"redis://…", "rediss://…", "unix://…", a folder, "memory" or "ray"' in said
        assert SECRET not in said
    said = refusal_of(lambda: RedisNameRecordRepository(f"http://u:{SECRET}@host"))
    assert 'is "http://…", expected "redis://…", "rediss://…", "unix://…"' in said
    for metadata in (f"redis://u:{SECRET}@host", f"{SECRET}:27017", "mongo://host"):
        said = refusal_of(lambda metadata=metadata: ParameterDBClient("e", "t", tmp_path, metadata=metadata))
        assert 'expected "mongodb://…", "mongodb+srv://…", "sqlite" or None' in said
        assert SECRET not in said
    said = refusal_of(lambda: ParameterDBClient("e", "t", f"s3://{SECRET}/parameters"))
    assert 'folder is "s3://…", expected a folder' in said
    assert [*tmp_path.iterdir()] == []


def test_secrets_are_in_no_error_and_no_log_of_a_server_that_does_not_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("redis")
    pytest.importorskip("pymongo")
    caplog.set_level(logging.DEBUG)
    texts = []
    with RedisNameRecordRepository(f"redis://user:{SECRET}@127.0.0.1:1/2?health_check_interval=9") as names:
        with pytest.raises(NameEntryError, match=r"Redis at redis://127\.0\.0\.1:1/2 failed") as failed:
            names.add("a", "here", keepalive_ttl=60)
        texts += [repr(names), *traceback.format_exception(failed.value)]
        with pytest.raises(TimeoutError) as late:
            names.wait("a", 0.0)
        texts += traceback.format_exception(late.value)
    url = f"mongodb://user:{SECRET}@127.0.0.1:1/other"
    with ParameterDBClient("experiment", "trial", tmp_path, metadata=url, timeout=0.1) as db:
        db.push("policy", {"a": 1}, 1)
        with pytest.raises(ParameterDBError, match=r"MongoDB at mongodb://127\.0\.0\.1:1/other did not") as unanswered:
            db.get("policy", {"a": 1})
        texts += [repr(db), *traceback.format_exception(unanswered.value)]
    assert SECRET not in "".join(texts) + caplog.text
