"""`Settings`, from flags and `STEPWELL_*` variables, with those of add-ons; and `SharedFolders` of the workers."""

from __future__ import annotations

import ast
import contextlib
import functools
import ipaddress
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from stepwell.errors import SettingsError
from stepwell_export.runtime.manifest import NAME
from stepwell_export.runtime.registered import AddonError, load, registered

PREFIX = "STEPWELL_"
METRICS_FOLDER_ENV = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable with the folder that the workers share for their metrics; its name is fixed by Prometheus."""

OTHER_VARIABLES = frozenset(
    PREFIX + name
    for name in (
        *("EXTRAS", "VENV", "ROOT"),  # of ./stepwell
        *("URL", "KEY"),  # of the commands that send requests
        "REDIS_SERVER",  # the embedded store's program
        "FAST_LANE",  # off: no fast path, for comparison
        *("TEST_SERVERS", "OPENAPI", "CAMPAIGN", "MACHINE", "PERF_STEPS", "REPLACED"),  # of the tests
    )
)
"""Environment variables with our prefix that are not settings."""

# Kubernetes sets these in every container for a service whose name begins with "stepwell": STEPWELL_SERVICE_HOST,
# STEPWELL_REDIS_PORT_6379_TCP_ADDR and so on.
_SERVICE_LINK = re.compile(
    rf"{PREFIX}(?:.+_)?(?:SERVICE_(?:HOST|PORT(?:_.+)?)|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_[A-Z]+)?)"
)
_ORIGIN = re.compile(r"null|[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s]+/?")  # as a browser sends it; a slash may follow
_LONGEST_HISTORY = 9999
_HISTORY = re.compile(rf"(?:{NAME.pattern}=)?[0-9]{{1,4}}")
# At least what the store counts in; at most 30 years, which timers and the store can still count.
Seconds = Annotated[float, Field(ge=0.001, le=1e9, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Bytes = Annotated[int, Field(ge=1)]
CheckModelFile = Callable[[Path], object]
"""Refuses a model file by raising a `StepwellError`."""


class SettingsGroup(BaseModel):
    """Settings whose descriptions are the docstrings of their fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    @classmethod
    def descriptions(cls) -> dict[str, str]:
        """Return the docstring of each setting. pydantic would read them at every start, which takes 20 ms."""
        module = ast.parse(Path(str(sys.modules[cls.__module__].__file__)).read_bytes())
        [body] = [node.body for node in module.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__]
        return {
            field.target.id: " ".join(text.value.value.split())
            for field, text in itertools.pairwise(body)
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        }


class AddonSettings(SettingsGroup):
    """The settings of one add-on: flags of `serve` and variables, as the service's own.

    An entry point of the group `stepwell.settings` is a subclass. Its module is imported by `serve` and `check`, so it
    should import little. `Settings.of` returns the add-on's object.
    """

    def check(self, settings: Settings) -> None:
        """Refuse settings with which the service must not start.

        Raises:
            StepwellError: They are such.
        """

    @contextlib.contextmanager
    def reserved(self, settings: Settings) -> Iterator[Self]:
        """Hold what the workers share, such as a port, while the block runs; yield the settings that they get.

        Raises:
            StepwellError: It cannot be had.
        """
        yield self

    def addresses(self, settings: Settings) -> Mapping[str, str]:
        """Return the addresses on which the add-on listens, by what is spoken there."""
        return {}

    def check_model_file(self, settings: Settings, folder: Path | None) -> CheckModelFile | None:
        """Return what refuses model files before they are loaded; None: nothing does.

        Args:
            settings: The settings.
            folder: Where it may store what it has accepted, which workers share; None: nowhere.
        """
        return None

    def store(self, settings: Settings) -> contextlib.AbstractContextManager[str] | None:
        """Return what runs a store while its block runs and yields its URL, where `redis` is not set; None: nothing.

        Raises:
            StepwellError: When it is entered: the store cannot be started.
        """
        return None

    @property
    def accepts_tokens(self) -> bool:
        """Whether bearer tokens that are no API keys are accepted: by `ServiceAddon.caller_of_token`."""
        return False

    def not_kept_reason(self, files: Sequence[Path]) -> str:
        """Return why the streams of a model need its files, although the add-on keeps others; empty: it keeps them."""
        return ""

    def limits(self) -> Mapping[str, float]:
        """Return those of its settings that `GET /v1/info` shows among the limits, by name."""
        return {}


_OfAddon = TypeVar("_OfAddon", bound=AddonSettings)


class Settings(SettingsGroup):
    """The settings of the service. Durations are in seconds and sizes in bytes, unless the name has another unit."""

    models: list[Path] = Field(default_factory=lambda: [Path("models")], min_length=1)
    """Folder of models, in the environment separated as PATH is. Of two models of one name, the first is served."""
    host: str = "127.0.0.1"
    """Address to listen on. Other addresses than loopback need `api_keys_file` or `insecure`."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0: a free one."""
    published: str | None = None
    """HOST:PORT at which a proxy in front of the service is reached. Only for the warning about an API that is open
    without keys. Unset: `host`."""
    workers: Count = 1
    """Number of worker processes."""
    redis: str | None = None
    """URL of the store: redis://, unix://, redis+sentinel:// or redis+cluster://, with rediss over TLS. Unset: a
    private server in `data_dir`."""
    data_dir: Path = Path(".stepwell")
    """Folder of the embedded store's data; only one `serve` can use it."""
    durability: Literal["memory", "fsync", "replica"] = "memory"
    """What a confirmed step survives. memory: the crash of a worker; fsync: also that of the store; replica: also a
    failover to a replica."""
    stream_ttl_s: Seconds = 7 * 86400
    """Seconds after which an idle stream expires; it may take up to 1.25 times as long."""
    snapshot_ttl_s: Seconds | None = None
    """Seconds after which a stream's snapshots expire after the last creation or use. Unset: `stream_ttl_s`."""
    max_snapshots: Count = 16
    """Maximum snapshots of one stream."""
    max_batch_size: Count = 256
    """Maximum streams in one model run."""
    max_wait_ms: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 0
    """Milliseconds that a timestep may wait for others to fill its batch; 0: no wait."""
    queue_limit: Count = 10_000
    """Timesteps that may wait in one worker; more are rejected with 503 `overloaded`."""
    cache_bytes: Annotated[int, Field(ge=0)] = 256 * 2**20
    """Size of one worker's record cache."""
    api_keys_file: Path | None = None
    """JSON file with the keys' hashes, tenants and scopes; reloaded when it changes. Unset: no API keys."""
    allowed_origins: list[str] = Field(default_factory=list)
    """Origins besides the service's own whose pages may open a WebSocket; comma-separated in the environment."""
    request_timeout_s: Seconds = 10
    """Maximum seconds from a request's receipt to its response."""
    run_timeout_s: Seconds = 5
    """Maximum seconds of one model run; a longer one fails with 503 `model_timeout`."""
    receive_timeout_s: Seconds = 10
    """Seconds in which a request's head and body have to arrive."""
    max_body_bytes: Bytes = 8 * 2**20
    """Maximum size of a request body or WebSocket message; a larger one is rejected with 413 `too_large`."""
    max_chunk_steps: Count = 4096
    """Maximum timesteps of one stream in one request."""
    max_connections: Count = 10_000
    """Maximum open connections of one worker, and maximum calls of gRPC at the same time."""
    max_websockets: Count = 5_000
    """Maximum open WebSockets, event streams and stream calls of gRPC of one worker."""
    tenant_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Timesteps per second that a tenant may send to one worker; other requests count as one. Unset: no limit."""
    tenant_max_websockets: Count | None = None
    """Maximum open WebSockets and event streams of one tenant in one worker. Unset: only `max_websockets` applies."""
    tenant_max_streams: Count | None = None
    """Maximum live streams of one tenant. Streams are counted about every 10 s, so the limit is approximate. Unset: no
    limit."""
    idempotency_ttl_s: Seconds = 600
    """Seconds that an Idempotency-Key is remembered."""
    history: list[str] = Field(default_factory=list)
    """Newest predictions that are kept of each stream, for watchers that come back: MODEL=N, comma-separated in the
    environment; N alone is for every other model. Unset: none."""
    drain_s: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 10
    """Maximum seconds for accepted requests to finish after SIGTERM."""
    ort_threads: Count = 1
    """Threads of onnxruntime within one model run."""
    execution_providers: list[str] = Field(default_factory=lambda: ["CPUExecutionProvider"], min_length=1)
    """onnxruntime execution providers, best first; comma-separated in the environment."""
    log_format: Literal["text", "json"] = "text"
    """Format of log lines."""
    audit_log: bool = True
    """Log each operation that changes or deletes streams, models or keys, with the id of the key that sent it."""
    watch_models: bool = False
    """Check for changed model files every second, and reload them."""
    require_preconditions: bool = False
    """Reject (428) requests that reset, replace or delete without `after` or an Idempotency-Key."""
    production: bool = False
    """Disable /docs, /openapi.json and /asyncapi.json, and start only with keys."""
    insecure: bool = False
    """Listen on other addresses than loopback without keys."""
    allow_eviction: bool = False
    """Start on a store that evicts live streams when its memory is full."""

    _of_addons: dict[type[AddonSettings], AddonSettings] = PrivateAttr(default_factory=dict)

    @field_validator("data_dir", "api_keys_file", mode="before")
    @classmethod
    def _path_is_given(cls, value: Any) -> Any:
        if value == "":
            raise ValueError("an empty path would be the current folder")
        return value

    @field_validator("models", mode="before")
    @classmethod
    def _folders(cls, value: Any) -> Any:
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    @field_validator("allowed_origins", "execution_providers", "history", mode="before")
    @classmethod
    def _comma_separated(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("history")
    @classmethod
    def _numbers_of_models(cls, value: list[str]) -> list[str]:
        for part in value:
            if not _HISTORY.fullmatch(part):
                raise ValueError(f"{part!r} is neither MODEL=N nor N, with N from 0 to {_LONGEST_HISTORY}")
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, value: list[str]) -> list[str]:
        for part in value:
            if not _ORIGIN.fullmatch(part):
                raise ValueError(f"{part!r} is no origin, such as https://app.example or http://localhost:3000")
        return value

    def unknown_history(self, models: Sequence[str]) -> list[str]:
        """Return a problem for each model of `history` that is not served, out of these models."""
        served = ", ".join(models) or "none"
        unknown = sorted(self.kept_history.keys() - {"*", *models})
        return [f"`history` names the model {name!r}, which is not served; models are: {served}" for name in unknown]

    @property
    def kept_history(self) -> dict[str, int]:
        """Number of predictions that are kept of each stream, by model; `*`: for all other models."""
        parts = [part.rpartition("=") for part in self.history]
        return {model or "*": int(number) for model, _, number in parts}

    @property
    def queue_bytes(self) -> int:
        """Bytes of inputs that may wait or run in one worker: 256 MiB, or four of the largest bodies."""
        return max(256 * 2**20, 4 * self.max_body_bytes)

    @property
    def longest_ttl_s(self) -> float:
        """Seconds for which a record, a snapshot or an idempotency entry lives at most after it was written."""
        return max(1.25 * self.stream_ttl_s, self.snapshot_ttl_s or self.stream_ttl_s, self.idempotency_ttl_s)

    @property
    def url_host(self) -> str:
        """`host` as it stands in a URL."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def has_keys(self) -> bool:
        """Whether requests need a key or a token."""
        return self.api_keys_file is not None or any(self.of(addon).accepts_tokens for addon in addon_settings())

    @property
    def open_address(self) -> str | None:
        """The address at which other machines may reach the API without a key; None: there is no such address."""
        address = self.published or self.host
        host = self.published.rpartition(":")[0].strip("[]") if self.published else self.host  # PORT alone: any host
        return None if self.has_keys or is_loopback(host) else address

    def of(self, addon: type[_OfAddon]) -> _OfAddon:
        """Return the settings of an add-on."""
        found = self._of_addons.get(addon)
        return found if isinstance(found, addon) else addon()

    @contextlib.contextmanager
    def reserved(self) -> Iterator[Settings]:
        """Hold what the add-ons' workers share while the block runs, and yield the settings of the workers.

        Raises:
            StepwellError: As for `AddonSettings.reserved`.
        """
        with contextlib.ExitStack() as stack:
            found = {addon: stack.enter_context(self.of(addon).reserved(self)) for addon in addon_settings()}
            chosen = self.model_copy()
            chosen._of_addons = found
            yield chosen

    @contextlib.contextmanager
    def with_store(self) -> Iterator[Settings]:
        """Yield settings with the URL of a store: the configured one, or one that an add-on runs while the block runs.

        Raises:
            SettingsError: `redis` is not set, and no add-on runs a store.
            StepwellError: As for `AddonSettings.store`.
        """
        if self.redis is not None:
            yield self
            return
        stores = (found for addon in addon_settings() if (found := self.of(addon).store(self)) is not None)
        store = next(stores, None)
        if store is None:
            raise SettingsError(
                "`redis` is not set, and no add-on that runs a store is installed.",
                fix=f"Set --redis or {PREFIX}REDIS to the URL of a store.",
            )
        with store as url:
            yield self.model_copy(update={"redis": url})

    def model_file_checks(self, folder: Path | None) -> list[CheckModelFile]:
        """Return what refuses model files before they are loaded; see `AddonSettings.check_model_file`."""
        found = [self.of(addon).check_model_file(self, folder) for addon in addon_settings()]
        return [check for check in found if check is not None]

    @property
    def more_addresses(self) -> dict[str, str]:
        """The addresses on which add-ons listen, by what is spoken there."""
        return {spoken: at for addon in addon_settings() for spoken, at in self.of(addon).addresses(self).items()}

    @property
    def more_limits(self) -> dict[str, float]:
        """The limits that add-ons have, by name."""
        return {name: limit for addon in addon_settings() for name, limit in self.of(addon).limits().items()}

    @classmethod
    def create(cls, values: Mapping[str, Any], *, fix: str = "") -> Settings:
        """Return settings with these values by name, those of add-ons among them.

        Args:
            values: The values; the others have their defaults.
            fix: What to do about a wrong one; by default its flag and variable are named.

        Raises:
            SettingsError: A value or a name is wrong.
            AddonError: As for `setting_groups`.
        """
        groups = setting_groups()
        own = {name: value for name, value in values.items() if groups.get(name, cls) is cls}
        try:
            settings = cls(**own)
            for addon in addon_settings():
                if given := {name: value for name, value in values.items() if groups.get(name) is addon}:
                    settings._of_addons[addon] = addon(**given)
        except ValidationError as exc:
            first = exc.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else "the settings"
            raise SettingsError(
                f"{name} is {first.get('input')!r}: {first['msg'].removeprefix('Value error, ')}.",
                fix=fix or f"Set --{name.replace('_', '-')} or {PREFIX}{name.upper()} to a value it can have.",
            ) from exc
        return settings

    @classmethod
    def load(cls, **flags: Any) -> Settings:
        """Return settings from the environment; flags that are not None override it.

        Raises:
            SettingsError: A setting has an invalid value, or a variable with our prefix is none.
            AddonError: As for `setting_groups`.
        """
        around = {name.upper(): value for name, value in os.environ.items()}
        variables = {name: PREFIX + name.upper() for name in setting_groups()}
        _check_variables(around, OTHER_VARIABLES | set(variables.values()))
        found = {name: around[variable] for name, variable in variables.items() if variable in around}
        return cls.create(found | {name: value for name, value in flags.items() if value is not None})


def addon_settings() -> Sequence[type[AddonSettings]]:
    """Return the settings of the installed add-ons.

    Raises:
        AddonError: A package registers something else, or it cannot be imported.
    """
    return [load(point, base=AddonSettings) for point in registered("stepwell.settings").values()]


@functools.cache
def setting_groups() -> Mapping[str, type[SettingsGroup]]:
    """Return the names of all settings, each with the class that has it; the service's come first.

    Raises:
        AddonError: As for `addon_settings`; or a name is taken.
    """
    groups: dict[str, type[SettingsGroup]] = dict.fromkeys(Settings.model_fields, Settings)
    for addon in addon_settings():
        if taken := sorted(groups.keys() & addon.model_fields.keys()):
            raise AddonError(
                f"{addon.__module__} has the setting {taken[0]!r}, which {groups[taken[0]].__module__} has already.",
                fix="Report it to the authors of the package, or uninstall it.",
            )
        groups |= dict.fromkeys(addon.model_fields, addon)
    return groups


def describe_settings() -> dict[str, str]:
    """Return the description of each setting, those of add-ons among them."""
    groups = dict.fromkeys(setting_groups().values())
    return {name: text for group in groups for name, text in group.descriptions().items()}


def _check_variables(around: Mapping[str, str], known: frozenset[str]) -> None:
    """Refuse a variable that nothing reads: what it was meant to set would silently keep its default."""
    unknown = sorted(
        name
        for name, value in around.items()
        if name.startswith(PREFIX) and name not in known and not _is_service_link(name, value)
    )
    if not unknown:
        return
    import difflib  # only here: it takes a moment

    near = {name: difflib.get_close_matches(name, known, n=1, cutoff=0.7) for name in unknown}
    found = [f"{name} (did you mean {match[0]}?)" if match else name for name, match in near.items()]
    raise SettingsError(
        f"The environment has {', '.join(found)}, which is no setting.",
        fix="Correct the name, or unset it; `stepwell serve --help` lists all settings.",
    )


@dataclass(frozen=True, slots=True)
class SharedFolders:
    """Folders that the workers of one `serve` share; each worker gets them with its settings.

    Attributes:
        verdicts: For what checks of model files have accepted; None: it is not stored.
        metrics: For the counts of all workers; None: there is one worker.
        artifacts: For copies of the models' files; None: each worker has its own.
    """

    verdicts: Path | None = None
    metrics: Path | None = None
    artifacts: Path | None = None

    def export_metrics_folder(self) -> None:
        """Set the environment variable of the metrics folder, which prometheus_client reads when it is imported."""
        if self.metrics is not None:
            os.environ[METRICS_FOLDER_ENV] = str(self.metrics)


def _is_service_link(name: str, value: str) -> bool:
    """Return whether Kubernetes has set a variable, for a service whose name begins with ours."""
    return bool(_SERVICE_LINK.fullmatch(name)) or (name.endswith("_PORT") and "://" in value)


def is_loopback(host: str) -> bool:
    """Return whether an address, or the name `localhost`, is a loopback address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
