"""`read_rules`: the rules, targets and addresses in a file RULES.toml."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import httpx2
import msgspec
from msgspec import Meta, Struct

from stepwell.addons.alert.conditions import AlarmCondition, ConditionError, opposite, parse_condition
from stepwell.addons.connect.toml_document import TomlDocument
from stepwell.errors import SettingsError
from stepwell_client.wire.ids import STREAM_ID
from stepwell_export.runtime.manifest import NAME

_LONGEST_NAME: Final = 64
_LONGEST_SILENCE_S: Final = 1e9
Severity = Literal["critical", "warning", "info"]


class RuleTable(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A `[[rule]]` as it is in the file; see `AlarmRule`."""

    name: Annotated[str, Meta(min_length=1, max_length=_LONGEST_NAME)]
    model: str
    prefix: str = ""
    when: str | None = None
    for_steps: Annotated[int, Meta(ge=1)] | None = None
    clear: str | int | float | None = None
    clear_for_steps: Annotated[int, Meta(ge=1)] | None = None
    silent_s: Annotated[float, Meta(gt=0, le=_LONGEST_SILENCE_S)] | None = None
    expired: bool = False
    refused: Annotated[int, Meta(ge=1)] | None = None
    severity: Severity | None = None


class TargetTable(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A `[[to]]` as it is in the file: a webhook, or the URL of a broker.

    Attributes:
        webhook: An http or https URL that alarms are posted to.
        url: The URL of a topic, stream, queue or file, as `stepwell connect` writes to.
        secret: The key of the signatures of a webhook.
        secret_env: The environment variable with it.
    """

    webhook: str | None = None
    url: str | None = None
    secret: str | None = None
    secret_env: str | None = None


class RulesFile(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, rename={"targets": "to"}):
    """A whole file.

    Attributes:
        rule: The rules.
        targets: `[[to]]`: where alarms are sent.
        url: The service's address.
        key_env: The environment variable with the API key.
        store: The URL of the service's store; None: the embedded store of the service's `data_dir`.
        group: Processes with the same group share their state, and one of them at a time raises alarms.
    """

    rule: Annotated[list[RuleTable], Meta(min_length=1)]
    targets: list[TargetTable] = []
    url: str | None = None
    key_env: str | None = None
    store: str | None = None
    group: str = "default"


@dataclass(frozen=True, slots=True)
class AlarmRule:
    """A rule with its parsed conditions.

    Attributes:
        name: Its name, unique in the file.
        model: The model whose streams it applies to.
        prefix: The start of their ids.
        when: The condition that raises an alarm; None: there is none.
        for_steps: Timesteps in a row in which the condition has to hold.
        clear: The condition that clears it; None: it is cleared by the first timestep in which `when` does not hold.
        clear_for_steps: Timesteps in a row in which it has to be so before the alarm is cleared.
        silent_s: Seconds without a timestep that raise an alarm; None: any silence is allowed.
        expired: Whether the expiry of a stream raises an alarm.
        refused: Refused timesteps since the last one that was applied that raise an alarm; None: none do.
        severity: How severe its alarms are; None: the file has none.
    """

    name: str
    model: str
    prefix: str
    when: AlarmCondition | None
    for_steps: int
    clear: AlarmCondition | None
    clear_for_steps: int
    silent_s: float | None
    expired: bool
    refused: int | None = None
    severity: Severity | None = None


@dataclass(frozen=True, slots=True)
class AlarmTarget:
    """Where alarms are sent.

    Attributes:
        url: The URL; it may have a password.
        is_webhook: Whether alarms are posted to it; else it is the URL of a broker.
        secret: The key of the signatures of a webhook; None: they are not signed.
    """

    url: str
    is_webhook: bool
    secret: bytes | None


@dataclass(frozen=True, slots=True)
class AlertRules:
    """A checked file.

    Attributes:
        rules: The rules, in their order.
        targets: Where alarms are sent.
        url: The service's address; None: not given.
        key: The API key; None: none.
        store: The URL of the store; None: the embedded one.
        group: The name of the group of processes.
        digest: Eight characters that change with the rules.
    """

    rules: tuple[AlarmRule, ...]
    targets: tuple[AlarmTarget, ...]
    url: str | None
    key: str | None
    store: str | None
    group: str
    digest: str

    @property
    def models(self) -> list[str]:
        """The models of the rules."""
        return list(dict.fromkeys(rule.model for rule in self.rules))

    def of_model(self, model: str) -> list[AlarmRule]:
        """Return the rules of a model."""
        return [rule for rule in self.rules if rule.model == model]


@dataclass(frozen=True, slots=True)
class FollowedModel:
    """What is followed.

    Attributes:
        name: The model.
        rules: Its rules.
        row_ranks: By input, the number of axes of one timestep.
        stream_ttl_ms: Milliseconds that an idle stream lives at least.
        longest_request_s: Seconds after which no commit of an earlier request is under way.
    """

    name: str
    rules: list[AlarmRule]
    row_ranks: dict[str, int]
    stream_ttl_ms: int
    longest_request_s: float

    @property
    def prefix(self) -> str:
        """The longest start that the ids of all streams of its rules have."""
        return os.path.commonprefix([rule.prefix for rule in self.rules])  # noqa: RUF071 - ids are no paths


def read_rules(path: Path, env: Mapping[str, str] = os.environ) -> AlertRules:
    """Return the rules in a file.

    Args:
        path: The file.
        env: The environment, which has the keys and secrets that the file names.

    Raises:
        SettingsError: The file cannot be read, is not TOML, or has an unknown, missing or wrong key.
    """
    document = TomlDocument.read(path, fix='The page "Alerts" of the documentation describes every key.')
    file = document.convert(RulesFile)
    names = [table.name for table in file.rule]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise document.error(f"rule[{i}].name", f"the name {name!r} is used twice; expected a name for each rule")
    rules = tuple(_rule(table, i, document) for i, table in enumerate(file.rule))
    targets = tuple(_target(table, i, document, env) for i, table in enumerate(file.targets))
    if not NAME.fullmatch(file.group):
        raise document.error("group", f"found {file.group!r}; expected 1 to 64 of A-Z a-z 0-9 . _ -")
    if file.key_env is not None and file.key_env not in env:
        raise document.error("key_env", f"the environment has no {file.key_env}")
    key = None if file.key_env is None else env[file.key_env]
    digest = f"{zlib.crc32(msgspec.json.encode(file)):08x}"
    return AlertRules(rules, targets, file.url, key, file.store, file.group, digest)


def _rule(table: RuleTable, index: int, document: TomlDocument) -> AlarmRule:
    def error(key: str, problem: str) -> SettingsError:
        return document.error(f"rule[{index}].{key}", problem)

    if not NAME.fullmatch(table.model):
        raise error("model", f"found {table.model!r}; expected the name of a model")
    if table.prefix and not STREAM_ID.fullmatch(table.prefix):
        raise error("prefix", f"found {table.prefix!r}; expected the start of a stream id, of A-Z a-z 0-9 . _ : @ -")
    if table.when is None and table.silent_s is None and not table.expired and table.refused is None:
        expected = "expected when, silent_s, expired or refused"
        raise error("name", f"the rule {table.name!r} never raises an alarm; {expected}")
    if table.when is None:
        for key in ("for_steps", "clear", "clear_for_steps"):
            if getattr(table, key) is not None:
                raise error(
                    key, f"found {getattr(table, key)!r} without `when`; expected a condition that it belongs to"
                )
    try:
        when = None if table.when is None else parse_condition(table.when)
    except ConditionError as exc:
        raise error("when", str(exc)) from exc
    try:
        clear = _clear_of(table)
    except ConditionError as exc:
        raise error("clear", str(exc)) from exc
    return AlarmRule(
        table.name,
        table.model,
        table.prefix,
        when,
        table.for_steps or 1,
        clear,
        table.clear_for_steps or 1,
        table.silent_s,
        table.expired,
        table.refused,
        table.severity,
    )


def _clear_of(table: RuleTable) -> AlarmCondition | None:
    if table.clear is None or table.when is None:
        return None
    return parse_condition(table.clear) if isinstance(table.clear, str) else opposite(table.when, table.clear)


def _target(table: TargetTable, index: int, document: TomlDocument, env: Mapping[str, str]) -> AlarmTarget:
    def error(key: str, problem: str) -> SettingsError:
        return document.error(f"to[{index}].{key}", problem)

    if (table.webhook is None) == (table.url is None):
        found = "neither" if table.url is None else "both"
        raise error("webhook", f"found {found} of webhook and url; expected one of them")
    if table.secret is not None and table.secret_env is not None:
        raise error("secret", "found secret and secret_env; expected one of them")
    if table.webhook is None:
        if table.secret is not None or table.secret_env is not None:
            raise error("url", "found a secret; only the requests of a webhook are signed")
        assert table.url is not None
        return AlarmTarget(table.url, False, None)
    if not re.match(r"https?://[^/?#]", table.webhook):
        raise error("webhook", f"found {table.webhook!r}; expected http://HOST/PATH or https://HOST/PATH")
    try:
        httpx2.URL(table.webhook)
        urlsplit(table.webhook).port  # noqa: B018 - it is read to be checked, which httpx2 does not do
    except (httpx2.InvalidURL, ValueError) as exc:
        raise error("webhook", f"found {table.webhook!r}: {str(exc).rstrip('.')}") from exc
    secret = table.secret
    if table.secret_env is not None:
        if table.secret_env not in env:
            raise error("secret_env", f"the environment has no {table.secret_env}")
        secret = env[table.secret_env]
    if secret is not None and not secret:
        raise error("secret", "found an empty secret; expected at least one character")
    return AlarmTarget(table.webhook, True, None if secret is None else secret.encode())
