"""`stepwell keys` creates, lists and revokes API keys in the file that the service reads."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import Result

from stepwell.commands.keys import keys_app
from stepwell.commands.keys_file import add_key, list_keys
from stepwell.errors import ServiceError
from stepwell.requests.auth.api_keys import ApiKeys
from stepwell.requests.auth.reloaded_keys_file import KeysFileError
from tests.commands.program import invoke


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def run_keys(file: Path, *words: str, typed: str = "") -> Result:
    """Run `stepwell keys WORDS`; a `StepwellError` is in the result's `exception`."""
    return invoke(keys_app, words, typed=typed, STEPWELL_API_KEYS_FILE=str(file))


def created_key(file: Path, *words: str) -> str:
    return str(json.loads(run_keys(file, "add", *words, "--json").stdout)["key"])


def test_the_service_accepts_a_created_key(file: Path) -> None:
    key = run_keys(file, "add", "pump-7", "--tenant", "plant", "--scopes", "step,admin").stdout.strip()

    caller = ApiKeys(file).caller(f"Bearer {key}")

    assert (caller.key_id, caller.tenant, set(caller.scopes)) == ("pump-7", "plant", {"step", "admin"})


def test_a_key_is_printed_once_and_only_its_hash_is_stored(file: Path) -> None:
    key = created_key(file, "one")

    assert len(key.removeprefix("swk_")) >= 43  # 256 bits in base64
    assert key not in file.read_text()
    assert json.loads(file.read_text())["keys"] == [
        {"id": "one", "sha256": sha256(key.encode()).hexdigest(), "tenant": "default", "scopes": ["read", "step"]}
    ]
    assert key not in run_keys(file, "ls").stdout + run_keys(file, "ls", "--json").stdout


def test_a_new_file_is_private_and_an_existing_one_keeps_its_permissions(file: Path) -> None:
    created_key(file, "one")
    assert file.stat().st_mode & 0o777 == 0o600

    file.chmod(0o640)
    created_key(file, "two")
    assert file.stat().st_mode & 0o777 == 0o640


def test_keys_are_counted_and_listed_by_name_tenant_and_scopes(file: Path) -> None:
    created_key(file, "one", "--tenant", "plant")

    assert json.loads(run_keys(file, "ls", "--json").stdout) == {
        "keys": [{"id": "one", "tenant": "plant", "scopes": ["read", "step"]}]
    }
    listed = run_keys(file, "ls").stdout
    assert "plant" in listed
    assert "1 key\n" in listed
    assert list(file.parent.iterdir()) == [file]  # no temporary one


def test_a_revoked_key_is_rejected_and_the_others_stay_valid(file: Path) -> None:
    old, kept = created_key(file, "old"), created_key(file, "kept")
    service = ApiKeys(file)

    assert run_keys(file, "revoke", "old", "--yes").exit_code == 0

    assert service.caller(f"Bearer {kept}").key_id == "kept"
    with pytest.raises(ServiceError):
        service.caller(f"Bearer {old}")


def test_a_key_that_does_not_exist_is_reported_without_a_question(file: Path) -> None:
    created_key(file, "one")
    result = run_keys(file, "revoke", "nope")

    assert "There is no key 'nope'; keys are: one." in str(result.exception)
    assert "Revoke" not in result.output


def test_declining_the_confirmation_revokes_nothing(file: Path) -> None:
    created_key(file, "one")

    assert run_keys(file, "revoke", "one", typed="n\n").exit_code == 1
    assert [one.key_id for one in list_keys(file)] == ["one"]


@pytest.mark.parametrize(
    "words",
    [
        ("add", "one"),  # a second time
        ("add", "two", "--scopes", "all"),
        ("add", "two", "--tenant", "a/b"),
        ("add", "a b"),
        ("revoke", "none", "--yes"),
    ],
)
def test_an_invalid_command_is_refused_and_changes_nothing(file: Path, words: tuple[str, ...]) -> None:
    created_key(file, "one")
    before = file.read_bytes()

    assert isinstance(run_keys(file, *words).exception, KeysFileError)
    assert file.read_bytes() == before


def test_a_file_that_is_missing_or_of_another_format_is_reported_and_left_as_it_is(file: Path) -> None:
    for words in (("ls",), ("revoke", "one", "--yes")):
        assert isinstance(run_keys(file, *words).exception, KeysFileError)
    assert not file.exists()
    file.write_text('{"users": []}')
    assert isinstance(run_keys(file, "add", "one").exception, KeysFileError)
    assert file.read_text() == '{"users": []}'


def test_unknown_fields_of_the_file_are_kept(file: Path) -> None:
    created_key(file, "one")
    document = json.loads(file.read_text())
    file.write_text(json.dumps({"note": "ours", **document}))

    created_key(file, "two")

    assert json.loads(file.read_text())["note"] == "ours"


def test_keys_created_concurrently_are_all_stored(file: Path) -> None:
    with ThreadPoolExecutor(8) as many:
        list(many.map(lambda n: add_key(file, f"key-{n}", "default", ["step"]), range(16)))

    assert {one.key_id for one in list_keys(file)} == {f"key-{n}" for n in range(16)}
