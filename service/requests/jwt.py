"""`JwtVerifier`: authenticates JSON Web Tokens of an identity provider by signature, issuer, audience and expiry.

PyJWT, an optional extra, verifies signatures; this module limits what is accepted and loads the provider's keys.

Source: RFC 7519 (JWT), RFC 7517 (JWK), RFC 8725 (best current practices).
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx

from model_export.manifest import NAME
from service.requests.api_keys import SCOPES, ApiKeys, Caller, KeysFileError, file_signature, unauthenticated

if TYPE_CHECKING:
    from service.settings import Settings

_log = logging.getLogger(__name__)

LEEWAY_S: Final = 60.0
"""Seconds that the clocks of provider and service may differ by."""

_RENEW_S: Final = 300.0  # seconds that keys from a URL are used before they are fetched again
_AGAIN_S: Final = 10.0  # minimum seconds between two fetches
_FETCH_WITHIN_S: Final = 5.0
_LARGEST: Final = 2**20  # maximum bytes of a JWK set
_MAX_TOKEN_CHARS: Final = 2**14  # an HTTP header is not longer either
_REMEMBERED: Final = 10_000  # valid tokens that are cached
_LEAST_RSA_BITS: Final = 2048
# Key type and curve that an algorithm needs.
_KINDS: Final = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", None)),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}


class JwtVerifier:
    """Verifies tokens and resolves them to callers; valid tokens are cached until they expire or the keys change."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        """Load the provider's keys.

        Args:
            settings: Issuer, audience, keys, algorithms, and the claim with the tenant.
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
                "`jwt_keys` is set without `jwt_issuer` and `jwt_audience`; a token without these would be anybody's.",
                fix="Set --jwt-issuer and --jwt-audience.",
            )
        self._jwt = jwt
        self._issuer, self._audience = settings.jwt_issuer, settings.jwt_audience
        self._algorithms = [str(name) for name in settings.jwt_algorithms]
        self._tenant_claim = settings.jwt_tenant_claim
        self._clock = clock
        self._keys = _keys_at(str(settings.jwt_keys))
        self._known: dict[bytes, tuple[Caller, float, int]] = {}  # caller, expiry, generation of the keys

    def caller(self, token: str) -> Caller:
        """Return the caller of a token.

        Raises:
            ServiceError: `unauthenticated`: the token is not accepted.
        """
        if len(token) > _MAX_TOKEN_CHARS:
            raise unauthenticated(f"The token has more than {_MAX_TOKEN_CHARS} characters.")
        keys, generation = self._keys.now()
        digest = sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = self._known.get(digest)
        if known is not None and known[2] == generation:
            if self._clock() < known[1]:
                return known[0]
            raise unauthenticated("The token has expired.")
        caller, until = self._checked(token, keys)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[digest] = caller, until, generation
        return caller

    # ---------------------------------------------------------------- helpers

    def _checked(self, token: str, keys: list[Mapping[str, Any]]) -> tuple[Caller, float]:
        """Return the caller and the expiry of a token, in seconds since 1970; raises as `caller` does."""
        jwt = self._jwt
        try:
            head = jwt.get_unverified_header(token)
            algorithm = head.get("alg")
            if algorithm not in self._algorithms:
                raise unauthenticated(f"The token is signed with another algorithm than {', '.join(self._algorithms)}.")
            key = jwt.PyJWK(dict(self._key(head, algorithm, keys)), algorithm=algorithm)
            if _KINDS[algorithm][0] == "RSA" and key.key.key_size < _LEAST_RSA_BITS:
                raise unauthenticated(f"The provider's key has fewer than {_LEAST_RSA_BITS} bits.")
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "aud", "iss"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError) as exc:
            # The library's messages name the invalid claim and never contain the token.
            raise unauthenticated(f"The token is not accepted: {str(exc)[:200] or type(exc).__name__}.") from exc
        return self._caller_of(claims), float(claims["exp"]) + LEEWAY_S

    def _key(self, head: Mapping[str, Any], algorithm: str, keys: list[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Return the key that a token names, if it may be used with the token's algorithm."""
        kind, curve = _KINDS[algorithm]
        fitting = [
            key
            for key in keys
            if key.get("kty") == kind
            and (curve is None or key.get("crv") == curve)
            and key.get("alg", algorithm) == algorithm
            and key.get("use", "sig") == "sig"
        ]
        if "kid" in head:
            fitting = [key for key in fitting if key.get("kid") == head["kid"]]
            if not fitting:
                self._keys.missed()
        if len(fitting) != 1:
            raise unauthenticated("The token names no key of the provider that is known.")
        return fitting[0]

    def _caller_of(self, claims: Mapping[str, Any]) -> Caller:
        tenant = claims.get(self._tenant_claim)
        if not isinstance(tenant, str) or not NAME.fullmatch(tenant):
            raise unauthenticated(f"The token's claim {self._tenant_claim!r} names no tenant: expected {NAME.pattern}.")
        told = claims.get("scope", claims.get("scp", claims.get("scopes", "")))
        words = told.split() if isinstance(told, str) else told if isinstance(told, list) else []
        subject = claims.get("sub")
        return Caller(
            tenant, frozenset(scope for scope in SCOPES if scope in words), subject if isinstance(subject, str) else ""
        )


def keys_of(settings: Settings) -> ApiKeys:
    """Return the API keys and the token verifier that the settings configure.

    Raises:
        KeysFileError: One of them cannot be loaded.
    """
    return ApiKeys(settings.api_keys_file, JwtVerifier(settings) if settings.jwt_keys else None)


class _Keys:
    """The provider's keys, and a generation that grows when they change."""

    def __init__(self) -> None:
        self._held: tuple[list[Mapping[str, Any]], int] = ([], 0)

    def now(self) -> tuple[list[Mapping[str, Any]], int]:
        """Return the current keys and their generation, without blocking."""
        return self._held

    def missed(self) -> None:
        """Request a fetch, because a token names an unknown key; does nothing for keys that are not fetched."""

    def _take(self, document: bytes) -> None:
        keys, generation = self._held
        found = _keys_of(document)
        if found != keys:
            self._held = found, generation + 1


class _KeysInFile(_Keys):
    """Keys in a file, which is reloaded when it changes."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        self._stamp: tuple[int, ...] = file_signature(file)
        self._complaint = ""
        self._read()

    def now(self) -> tuple[list[Mapping[str, Any]], int]:
        try:
            stamp = file_signature(self._file)
            if stamp != self._stamp:
                self._stamp = stamp
                self._read()
                self._complaint = ""
        except KeysFileError as exc:
            if str(exc) != self._complaint:  # once, not with every request
                _log.error("The keys of tokens read before stay in force: %s", exc)
            self._complaint = str(exc)
        return self._held

    def _read(self) -> None:
        try:
            self._take(self._file.read_bytes())
        except (OSError, ValueError) as exc:
            raise KeysFileError(
                f"The file {self._file.name} has no keys of tokens: {exc}.", fix="Give a JWK set in `jwt_keys`."
            ) from exc


class _KeysAtUrl(_Keys):
    """Keys at a URL, fetched at the start and then by a background thread; requests never wait for a fetch."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="jwt-keys", daemon=True)
        self._fetch()

    def now(self) -> tuple[list[Mapping[str, Any]], int]:
        if not self._thread.is_alive():
            self._thread.start()
        return self._held

    def missed(self) -> None:
        self._wanted.set()

    def _follow(self) -> None:
        pause = threading.Event()  # never set
        while True:
            pause.wait(_AGAIN_S)  # tokens with unknown keys cannot cause more frequent fetches
            self._wanted.wait(_RENEW_S - _AGAIN_S if self._held[0] else 0)
            self._wanted.clear()
            self._fetch()

    def _fetch(self) -> None:
        try:
            answer = httpx.get(self._url, timeout=_FETCH_WITHIN_S, follow_redirects=False)
            answer.raise_for_status()
            self._take(answer.content)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as exc:
            _log.error("The keys of tokens cannot be fetched; those known stay in force: %s", type(exc).__name__)


def _keys_at(place: str) -> _Keys:
    if "://" not in place:
        return _KeysInFile(Path(place))
    url = httpx.URL(place)
    if url.scheme == "https" or (url.scheme == "http" and url.host in ("127.0.0.1", "localhost")):
        return _KeysAtUrl(place)
    raise KeysFileError(
        f"`jwt_keys` is a URL of scheme {url.scheme!r}; expected https: who could change the answer could sign.",
        fix="Give an https URL, or a file.",
    )


def _keys_of(document: bytes) -> list[Mapping[str, Any]]:
    """Return the public keys of a JWK set, without keys of other types, such as shared secrets.

    Raises:
        ValueError: The document is not a JWK set, or is too large.
    """
    if len(document) > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST} bytes")
    found = json.loads(document)
    keys = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(keys, list):
        raise ValueError('expected {"keys": [..]}')
    return [key for key in keys if isinstance(key, dict) and key.get("kty") in ("RSA", "EC", "OKP")]
