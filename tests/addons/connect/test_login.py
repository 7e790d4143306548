"""`Login` and `Secret`: where secrets are read, and that no text has them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from stepwell.addons.connect.login import LoginSection
from stepwell.addons.connect.messages import ConnectUsageError, LoginRefusedError
from stepwell.addons.connect.urls import BrokerUrl

SECRET = "correct-horse"


def read(url: str, **keys: str) -> str | None:
    """Return the password or token of a URL and the keys of a table."""
    one = BrokerUrl.parse(url, LoginSection(**keys) if keys else None, table="[from.login]")
    found = asyncio.run(one.login.credentials())
    return found.password or found.token or found.nkey


@pytest.mark.parametrize(("written", "expected"), [("s\n", "s"), ("s\r\n", "s"), ("s\n\n", "s\n"), (" s ", " s ")])
def test_the_last_newline_of_a_file_is_no_part_of_the_secret(tmp_path: Path, written: str, expected: str) -> None:
    (tmp_path / "p").write_bytes(written.encode())

    assert read("redis://h/0?stream=a", user="u", password_file=str(tmp_path / "p")) == expected


def test_a_secret_is_read_again_for_each_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t").write_text("one")
    url = BrokerUrl.parse("kafka://h/t", LoginSection(token_command=f"cat {tmp_path / 't'}"), table="[from.login]")
    first = asyncio.run(url.login.credentials()).token
    (tmp_path / "t").write_text("two")

    assert (first, asyncio.run(url.login.credentials()).token) == ("one", "two")


@pytest.mark.parametrize(
    "text",
    [
        f"redis://u:{SECRET}@h/0?stream=a",
        f"kafka://u:{SECRET}@h:9092,i:9092/t",
        f"nats://{SECRET}@h/s",
        f"amqp://u:{SECRET}@h/q?vhost=a",
    ],
)
def test_no_text_of_a_url_has_its_secret(text: str) -> None:
    url = BrokerUrl.parse(text)

    assert asyncio.run(url.login.credentials()) is not None
    assert SECRET not in f"{url.text} {url!r} {url.login!r} {url.login.secrets!r}"
    assert SECRET not in str(url.login.refused(url.text, f"no {SECRET} here"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"redis://u:{SECRET}/?#@h/0?stream=a", "a password with one of / ? #"),
        (f"kafak://u:{SECRET}@h/t", "the scheme 'kafak'"),
        (f"kafka://u:{SECRET}@h/t?grup=a", "the option 'grup'"),
        (f"kafka://u:{SECRET}@h/", "is incomplete"),
        (f"kafka://u:{SECRET}@h/t?password_env=P", "two ways to read the password"),
    ],
)
def test_no_error_about_a_url_has_its_secret(text: str, said: str) -> None:
    with pytest.raises(ConnectUsageError) as error:
        BrokerUrl.parse(text)

    assert said in error.value.problem
    assert SECRET not in f"{error.value.problem} {error.value.fix}"


@pytest.mark.parametrize(
    ("url", "keys", "said"),
    [
        ("kafka://h/t", {"creds": "f"}, "has the key 'creds'"),
        ("mqtt://h/t", {"token_env": "T"}, "has the key 'token_env'"),
        ("file:///x", {"user": "u"}, "logins of file have none"),
        ("redis://h/0?stream=a", {"key": "k"}, "a key without a cert"),
        ("redis://u@h/0?stream=a", {"user": "v"}, "has a login, and there is the table [from.login]"),
    ],
)
def test_a_login_that_a_broker_does_not_have_is_refused(url: str, keys: dict[str, str], said: str) -> None:
    with pytest.raises(ConnectUsageError) as error:
        BrokerUrl.parse(url, LoginSection(**keys), table="[from.login]")

    assert said in error.value.problem


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"sasl": "GSSAPI", "user": "u"}, "expected one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER"),
        ({"sasl": "OAUTHBEARER", "user": "u"}, "no token"),
        ({"sasl": "SCRAM-SHA-256", "user": "u"}, "no password"),
    ],
)
def test_kafka_names_what_a_mechanism_lacks(keys: dict[str, str], said: str) -> None:
    pytest.importorskip("aiokafka", reason="aiokafka is not installed (STEPWELL_EXTRAS=connect)")
    with pytest.raises(ConnectUsageError, match=said):
        BrokerUrl.parse("kafka://h/t", LoginSection(**keys), table="[from.login]").writer("json")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"password_env": "NO_SUCH_PASSWORD"}, "password_env NO_SUCH_PASSWORD: the environment has no such variable"),
        ({"password_file": "/nowhere/p"}, "password_file /nowhere/p cannot be read: No such file"),
        ({"token_command": "false"}, "token_command false has ended with 1"),
        ({"token_command": "/nowhere/c"}, "token_command /nowhere/c cannot be run"),
        ({"ca": "/nowhere/ca.pem"}, "ca /nowhere/ca.pem of [from.login] cannot be used"),
    ],
)
def test_a_secret_that_is_not_there_is_named(keys: dict[str, str], said: str) -> None:
    with pytest.raises(LoginRefusedError) as error:
        read("kafka://h/t", **keys)

    assert said in error.value.problem
