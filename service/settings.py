"""`Settings`: every knob of the service in one place, from flags and `STEPWELL_*`; the flag wins."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from model_export.errors import StepwellError
from model_export.manifest import NAME

PREFIX = "STEPWELL_"
_LONGEST_HISTORY = 9999
_HISTORY = re.compile(rf"(?:{NAME.pattern}=)?[0-9]{{1,4}}")
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Bytes = Annotated[int, Field(ge=1)]


JwtAlgorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class SettingsError(StepwellError):
    """A setting has a value that it cannot have."""

    code = "bad_setting"


class Settings(BaseModel):
    """What a service is told. Durations are seconds, sizes bytes, unless the name says otherwise."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, protected_namespaces=()
    )

    models: list[Path] = Field(default_factory=lambda: [Path("models")], min_length=1)
    """Folders with models; in the environment separated as PATH is. The first that has a name wins."""
    host: str = "127.0.0.1"
    """Address to listen on. Beyond loopback it takes `api_keys_file`, or `insecure`."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0: a free one."""
    workers: Count = 1
    """Processes that serve."""
    redis: str | None = None
    """URL of the store: redis://, unix://, redis+sentinel:// or redis+cluster://, with rediss over TLS. Unset: a
    private server in `data_dir`."""
    data_dir: Path = Path(".stepwell")
    """Folder of the embedded store's data; one `serve` owns it."""
    durability: Literal["memory", "fsync", "replica"] = "memory"
    """What an answered step survives: a worker's death; also the store's; also a failover to a replica."""
    stream_ttl_s: Seconds = 7 * 86400
    """Seconds that an idle stream lives at least; at most 1.25 times as long."""
    snapshot_ttl_s: Seconds | None = None
    """Seconds that a stream's snapshots live after the last one was taken or used. Unset: as long as idle streams."""
    max_snapshots: Count = 16
    """Most snapshots of one stream."""
    max_batch_size: Count = 256
    """Most streams in one model run."""
    max_wait_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0
    """Milliseconds that a timestep may wait for others to join its batch; 0: none."""
    queue_limit: Count = 10_000
    """Timesteps that may wait in one worker; more are refused with 503 `overloaded`."""
    queue_bytes: Bytes = 256 * 2**20
    """Bytes of inputs that may wait or be run in one worker; more are refused with 503 `overloaded`."""
    cache_bytes: Annotated[int, Field(ge=0)] = 256 * 2**20
    """Memory of one worker for the records of hot streams."""
    api_keys_file: Path | None = None
    """JSON file with the keys' hashes, tenants and scopes; read again when it changes. Unset: no keys are asked for."""
    jwt_keys: str | None = None
    """JWK set of an identity provider, a file or an https URL: its tokens are taken as keys. Needs the extra jwt."""
    jwt_issuer: str | None = None
    """Who has to have issued a token: its claim iss."""
    jwt_audience: str | None = None
    """Whom a token has to be for: its claim aud."""
    jwt_algorithms: list[JwtAlgorithm] = Field(["RS256", "ES256", "EdDSA"], min_length=1)
    """How a token may be signed; comma-separated in the environment."""
    jwt_tenant_claim: str = "tenant"
    """The claim that names the tenant; scopes are in `scope`, `scp` or `scopes`."""
    allowed_origins: list[str] = Field(default_factory=list)
    """Origins besides the service's own whose pages may open a WebSocket; comma-separated in the environment."""
    request_timeout_s: Seconds = 10
    """Seconds from a request's receipt to its answer."""
    run_timeout_s: Seconds = 5
    """Seconds that one model run may take; a longer one is ended with 503 `model_timeout`."""
    receive_timeout_s: Seconds = 10
    """Seconds in which a request's head and body have to arrive."""
    max_body_bytes: Bytes = 8 * 2**20
    """Largest request body or WebSocket message; more is 413 `too_large`."""
    max_chunk_steps: Count = 4096
    """Most timesteps of one stream in one request."""
    max_horizon: Count = 4096
    """Most timesteps of one rollout."""
    max_samples: Count = 256
    """Most samples of one rollout."""
    max_connections: Count = 10_000
    """Open connections of one worker."""
    max_websockets: Count = 5_000
    """Open WebSockets and event streams of one worker."""
    tenant_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Timesteps a second that a tenant may send to one worker; other requests count as one. Unset: no limit."""
    tenant_max_websockets: Count | None = None
    """Open WebSockets and event streams of one tenant in one worker. Unset: no limit but `max_websockets`."""
    tenant_max_streams: Count | None = None
    """Live streams of one tenant, to what began or went within the last ten seconds or so. Unset: no limit."""
    idempotency_ttl_s: Seconds = 600
    """Seconds that an Idempotency-Key is remembered."""
    history: list[str] = Field(default_factory=list)
    """Newest predictions that are kept of each stream, for watchers that come back: MODEL=N, comma-separated in the
    environment; N alone is for every other model. Unset: none."""
    drain_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10
    """Seconds that accepted requests get to finish after SIGTERM."""
    ort_threads: Count = 1
    """Threads of onnxruntime within one model run."""
    execution_providers: list[str] = Field(default_factory=lambda: ["CPUExecutionProvider"], min_length=1)
    """onnxruntime execution providers, best first; comma-separated in the environment."""
    log_format: Literal["text", "json"] = "text"
    """How log lines are written."""
    model_probe_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30
    """Seconds in which a new model file has to be loaded and run once, in a process of its own; 0: without one."""
    model_memory_bytes: Bytes = 4 * 2**30
    """Memory that this may take; a larger file, or one that needs more, is refused."""
    watch_models: bool = False
    """Look for changed model files each second."""
    require_preconditions: bool = False
    """Refuse (428) what resets, replaces or deletes and carries neither `after` nor an Idempotency-Key."""
    production: bool = False
    """Close what only developers need (/docs and /openapi.json), and start only with keys."""
    insecure: bool = False
    """Listen beyond loopback without keys."""
    allow_eviction: bool = False
    """Start on a store that deletes live streams when its memory is short."""

    @field_validator("models", mode="before")
    @classmethod
    def _folders(cls, value: Any) -> Any:
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    @field_validator("allowed_origins", "execution_providers", "jwt_algorithms", "history", mode="before")
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

    @property
    def kept_history(self) -> dict[str, int]:
        """How many predictions are kept of each stream, by model; `*`: of every other model."""
        parts = [part.rpartition("=") for part in self.history]
        return {model or "*": int(number) for model, _, number in parts}

    @classmethod
    def load(cls, **flags: Any) -> Settings:
        """Read the environment; flags that are given (not None) win.

        Raises:
            SettingsError: A value is not one that its setting can have.
        """
        around = {name.upper(): value for name, value in os.environ.items()}
        found = {name: around[PREFIX + name.upper()] for name in cls.model_fields if PREFIX + name.upper() in around}
        try:
            return cls(**found | {name: value for name, value in flags.items() if value is not None})
        except ValidationError as exc:
            first = exc.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else "the settings"
            raise SettingsError(
                f"{name} is {first.get('input')!r}: {first['msg']}.",
                fix=f"Set --{name.replace('_', '-')} or {PREFIX}{name.upper()} to a value it can have.",
            ) from exc

    def to_env(self) -> dict[str, str]:
        """Return the environment that makes the same settings in another process."""
        env: dict[str, str] = {}
        for name, value in self:
            if value is None:
                continue
            if isinstance(value, list):
                text = (os.pathsep if name == "models" else ",").join(str(part) for part in value)
            else:
                text = str(value).lower() if isinstance(value, bool) else str(value)
            env[PREFIX + name.upper()] = text
        return env


def is_loopback(host: str) -> bool:
    """Say whether an address, or the name of one, is this machine's own and no other's."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
