"""`stepwell keys` makes, lists and revokes keys; what it writes is what the service reads."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from model_export.errors import StepwellError
from service.api.auth import Keys, KeysFileError
from service.api.keys_file import add_key, list_keys
from service.commands.keys import keys_app
from service.errors import ServiceError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def keys(file: Path, *words: str, typed: str = "") -> Result:
    """Run `stepwell keys WORDS`; a `StepwellError` is kept in the result's `exception`."""
    env = {"COLUMNS": "200", "TERM": "dumb", "STEPWELL_API_KEYS_FILE": str(file)}
    result = CliRunner().invoke(keys_app, words, env=env, input=typed)
    if result.exception is not None and not isinstance(result.exception, SystemExit | StepwellError):
        raise result.exception
    return result


def added(file: Path, *words: str) -> str:
    return str(json.loads(keys(file, "add", *words, "--json").stdout)["key"])


def test_a_key_that_was_made_is_taken_by_the_service(file: Path) -> None:
    key = keys(file, "add", "pump-7", "--tenant", "plant", "--scopes", "step,admin").stdout.strip()

    caller = Keys(file).caller(f"Bearer {key}")

    assert (caller.key_id, caller.tenant, set(caller.scopes)) == ("pump-7", "plant", {"step", "admin"})


def test_a_key_is_printed_once_and_its_hash_is_kept(file: Path) -> None:
    key = added(file, "one")

    assert key not in file.read_text()
    assert json.loads(file.read_text())["keys"] == [
        {"id": "one", "sha256": sha256(key.encode()).hexdigest(), "tenant": "default", "scopes": ["read", "step"]}
    ]
    assert key not in keys(file, "ls").stdout + keys(file, "ls", "--json").stdout


def test_two_keys_are_never_alike_and_hard_to_guess(file: Path) -> None:
    first, second = added(file, "one"), added(file, "two")

    assert first != second
    assert len(first.removeprefix("swk_")) >= 43  # 256 bits in base64


def test_a_new_file_is_its_owners_alone_and_an_old_one_keeps_its_rights(file: Path) -> None:
    added(file, "one")
    assert file.stat().st_mode & 0o777 == 0o600

    file.chmod(0o640)
    added(file, "two")
    assert file.stat().st_mode & 0o777 == 0o640


def test_nothing_is_left_beside_the_file(file: Path) -> None:
    added(file, "one")
    keys(file, "add", "one")

    assert list(file.parent.iterdir()) == [file]


def test_keys_are_listed_by_name_tenant_and_scopes(file: Path) -> None:
    added(file, "one", "--tenant", "plant")

    assert json.loads(keys(file, "ls", "--json").stdout) == {
        "keys": [{"id": "one", "tenant": "plant", "scopes": ["read", "step"]}]
    }
    assert "plant" in keys(file, "ls").stdout


def test_a_revoked_key_is_refused_and_the_others_stay(file: Path) -> None:
    old, kept = added(file, "old"), added(file, "kept")
    service = Keys(file)

    assert keys(file, "revoke", "old", "--yes").exit_code == 0

    assert service.caller(f"Bearer {kept}").key_id == "kept"
    with pytest.raises(ServiceError):
        service.caller(f"Bearer {old}")


def test_a_no_revokes_nothing(file: Path) -> None:
    added(file, "one")

    assert keys(file, "revoke", "one", typed="n\n").exit_code == 1
    assert [one.key_id for one in list_keys(file)] == ["one"]


@pytest.mark.parametrize(
    "words",
    [
        ("add", "one"),  # a second time
        ("add", "two", "--scopes", "all"),
        ("add", "two", "--scopes", ""),
        ("add", "two", "--tenant", "a/b"),
        ("add", "a b"),
        ("revoke", "none", "--yes"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(file: Path, words: tuple[str, ...]) -> None:
    added(file, "one")
    before = file.read_bytes()

    assert isinstance(keys(file, *words).exception, KeysFileError)
    assert file.read_bytes() == before


@pytest.mark.parametrize("words", [("ls",), ("revoke", "one", "--yes")])
def test_a_file_that_is_not_there_is_told(file: Path, words: tuple[str, ...]) -> None:
    assert isinstance(keys(file, *words).exception, KeysFileError)
    assert not file.exists()


def test_a_file_of_something_else_is_left_alone(file: Path) -> None:
    file.write_text('{"users": []}')

    assert isinstance(keys(file, "add", "one").exception, KeysFileError)
    assert file.read_text() == '{"users": []}'


def test_what_others_wrote_into_the_file_stays(file: Path) -> None:
    added(file, "one")
    document = json.loads(file.read_text())
    file.write_text(json.dumps({"note": "ours", **document}))

    added(file, "two")

    assert json.loads(file.read_text())["note"] == "ours"


def test_keys_made_at_the_same_time_are_all_there(file: Path) -> None:
    with ThreadPoolExecutor(8) as many:
        list(many.map(lambda n: add_key(file, f"key-{n}", "default", ["step"]), range(16)))

    assert {one.key_id for one in list_keys(file)} == {f"key-{n}" for n in range(16)}
