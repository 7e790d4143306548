"""`JwtVerifier`: authenticates JSON Web Tokens of an identity provider by signature, issuer, audience and expiry.

PyJWT, an extra, verifies signatures and fetches keys; this module decides which tokens and keys are accepted.

Source: RFC 7519 (JWT), RFC 7517 (JWK), RFC 8725 (best current practices).
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stepwell.requests.auth.api_keys import SCOPES, Caller, unauthenticated
from stepwell.requests.auth.reloaded_keys_file import KeysFileError, ReloadedKeysFile
from stepwell_export.runtime.manifest import NAME

if TYPE_CHECKING:
    from jwt import PyJWK

    from stepwell.addons.jwt.settings import JwtSettings

_log = logging.getLogger(__name__)

LEEWAY_S: Final = 60.0
"""Seconds that the clocks of provider and service may differ by."""

_REFRESH_S: Final = 300.0  # seconds that keys from a URL are used before they are fetched again
_MIN_FETCH_INTERVAL_S: Final = 10.0  # minimum seconds between two fetches
_FETCH_TIMEOUT_S: Final = 5.0
_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_MAX_TOKEN_CHARS: Final = 2**14  # longer tokens do not fit into a header
_MAX_CACHED: Final = 10_000  # valid tokens


class JwtVerifier:
    """Verifies tokens and resolves them to callers; valid tokens are cached until they expire or the keys change."""

    def __init__(self, settings: JwtSettings, *, clock: Callable[[], float] = time.time) -> None:
        """Load the provider's keys.

        Args:
            settings: Issuer, audience, keys, and the claim with the tenant.
            clock: Returns seconds since 1970.

        Raises:
            KeysFileError: The keys file cannot be used, the URL is not valid, the issuer or the audience is not set,
                or PyJWT is not installed.
        """
        try:
            import cryptography  # noqa: F401 - PyJWT works without it, but supports shared secrets only
            import jwt
        except ImportError as exc:
            raise KeysFileError(
                "`jwt_keys` is set, and PyJWT with cryptography is not installed.",
                fix="Install it: pip install 'stepwell[jwt]'.",
            ) from exc
        if not settings.jwt_issuer or not settings.jwt_audience:
            raise KeysFileError(
                "`jwt_keys` is set without `jwt_issuer` and `jwt_audience`; tokens for any service would be accepted.",
                fix="Set --jwt-issuer and --jwt-audience.",
            )
        self._jwt = jwt
        self._issuer, self._audience = settings.jwt_issuer, settings.jwt_audience
        self._tenant_claim = settings.jwt_tenant_claim
        self._clock = clock
        self._keys = _jwk_set(str(settings.jwt_keys))
        self._cache: dict[bytes, tuple[Caller, float, int]] = {}  # caller, expiry and generation of the keys, by hash

    def caller(self, token: str) -> Caller:
        """Return the caller of a token.

        Raises:
            ServiceError: `unauthenticated`: the token is not accepted.
        """
        if len(token) > _MAX_TOKEN_CHARS:
            raise unauthenticated(f"The token has more than {_MAX_TOKEN_CHARS} characters.")
        keys, generation = self._keys.current()
        digest = sha256(token.encode("utf-8", "surrogatepass")).digest()
        cached = self._cache.get(digest)
        if cached is not None and cached[2] == generation:
            if self._clock() < cached[1]:
                return cached[0]
            raise unauthenticated("The token has expired.")
        caller, expires_at = self._verify(token, keys)
        if len(self._cache) >= _MAX_CACHED:
            self._cache.clear()
        self._cache[digest] = caller, expires_at, generation
        return caller

    # ---------------------------------------------------------------- helpers

    def _verify(self, token: str, keys: Sequence[PyJWK]) -> tuple[Caller, float]:
        """Return the caller of a token, and when it expires, in seconds since 1970; raises as `caller` does."""
        jwt = self._jwt
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in _ALGORITHMS:
                raise unauthenticated(f"The token is signed with another algorithm than {', '.join(_ALGORITHMS)}.")
            claims = jwt.decode(
                token,
                self._key(header, keys),
                algorithms=_ALGORITHMS,
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "aud", "iss"], "enforce_minimum_key_length": True},
            )
        except (jwt.PyJWTError, ValueError, TypeError) as exc:
            # The library's messages name the invalid claim and never contain the token.
            raise unauthenticated(f"The token is not accepted: {str(exc)[:200] or type(exc).__name__}.") from exc
        return self._caller_of(claims), float(claims["exp"]) + LEEWAY_S

    def _key(self, header: Mapping[str, Any], keys: Sequence[PyJWK]) -> PyJWK:
        """Return the key that a token names, if it may be used with the token's algorithm."""
        matching = [key for key in keys if key.algorithm_name == header["alg"]]
        if "kid" in header:
            matching = [key for key in matching if key.key_id == header["kid"]]
            if not matching:
                self._keys.request_refresh()
        if len(matching) != 1:
            raise unauthenticated("The token does not name a known key of the provider.")
        return matching[0]

    def _caller_of(self, claims: Mapping[str, Any]) -> Caller:
        tenant = claims.get(self._tenant_claim)
        if not isinstance(tenant, str) or not NAME.fullmatch(tenant):
            raise unauthenticated(f"The token's claim {self._tenant_claim!r} names no tenant: expected {NAME.pattern}.")
        claim = claims.get("scope", claims.get("scp", claims.get("scopes", "")))
        scopes = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
        subject = claims.get("sub")
        return Caller(
            tenant, frozenset(scope for scope in SCOPES if scope in scopes), subject if isinstance(subject, str) else ""
        )


class _FileJwkSet:
    """The provider's keys, from a file."""

    def __init__(self, file: Path) -> None:
        self._file = ReloadedKeysFile(file, _read_keys)

    def current(self) -> tuple[list[PyJWK], int]:
        """Return the keys, each with its algorithm, and their generation."""
        self._file.refresh()
        return self._file.content, self._file.generation

    def request_refresh(self) -> None:
        """Do nothing: `current` loads the file again when it has changed."""


class _RemoteJwkSet:
    """The provider's keys, from a URL: fetched at the start and then by a thread, so that no request waits."""

    def __init__(self, url: str) -> None:
        import httpx2  # here and below: it would add a tenth to each start, and few services use a URL
        from jwt import PyJWKClient

        self._current: tuple[list[PyJWK], int] = ([], 0)
        self._client = PyJWKClient(
            url,
            cache_jwk_set=False,  # a cache would drop old keys even if no newer ones can be fetched
            headers={"User-Agent": "stepwell"},
            timeout=_FETCH_TIMEOUT_S,
            ssl_context=httpx2.create_ssl_context(),
        )
        self._requested = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="jwt-keys", daemon=True)
        self._fetch()

    def current(self) -> tuple[list[PyJWK], int]:
        """Return the same as `_FileJwkSet.current`."""
        if not self._thread.is_alive():
            self._thread.start()
        return self._current

    def request_refresh(self) -> None:
        """Fetch the keys soon: a token names one that is unknown."""
        self._requested.set()

    def _refresh(self) -> None:
        pause = threading.Event()  # never set
        while True:
            pause.wait(_MIN_FETCH_INTERVAL_S)  # tokens with unknown keys cannot cause more frequent fetches
            self._requested.wait(_REFRESH_S - _MIN_FETCH_INTERVAL_S if self._current[0] else 0)
            self._requested.clear()
            self._fetch()

    def _fetch(self) -> None:
        try:
            self._current = _keys_in(self._client.fetch_data()), self._current[1] + 1
        except Exception as exc:  # noqa: BLE001 - the thread continues after any error; it is logged
            _log.error("The keys of tokens cannot be fetched; the last ones are still used: %s", type(exc).__name__)


def _jwk_set(location: str) -> _FileJwkSet | _RemoteJwkSet:
    if "://" not in location:
        return _FileJwkSet(Path(location))
    import httpx2

    url = httpx2.URL(location)
    if url.scheme == "https" or (url.scheme == "http" and url.host in ("127.0.0.1", "localhost")):
        return _RemoteJwkSet(location)
    raise KeysFileError(
        f"`jwt_keys` is a URL of scheme {url.scheme!r}; expected https: without TLS, others could replace the keys.",
        fix="Give an https URL, or a file.",
    )


def _read_keys(file: Path) -> list[PyJWK]:
    try:
        return _keys_in(json.loads(file.read_bytes()))
    except (OSError, ValueError, RecursionError) as exc:
        raise KeysFileError(
            f"The file {file.name} has no keys of tokens: {exc}.", fix="Give a JWK set in `jwt_keys`."
        ) from exc


def _keys_in(document: object) -> list[PyJWK]:
    """Return the public keys of a JWK set; others, such as shared secrets, are left out.

    Raises:
        ValueError: The document is not a JWK set, or is too large.
    """
    found = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(found, list):
        raise ValueError('expected {"keys": [..]}')
    return [key for raw in found if (key := _public_key(raw)) is not None]


def _public_key(raw: object) -> PyJWK | None:
    """Return a key of a JWK set for its algorithm: `alg`, else the usual one of its type; None: it is no public key."""
    from jwt import PyJWK

    if not isinstance(raw, dict) or "d" in raw or raw.get("use", "sig") != "sig":
        return None
    try:
        key = PyJWK(raw)
        key.Algorithm.prepare_key(key.key)  # checks that its curve is the algorithm's
    except Exception:  # noqa: BLE001 - a key that the library cannot parse is left out
        return None
    return key if key.algorithm_name in _ALGORITHMS else None
