"""JWTs of an identity provider: which are accepted, and that every defect makes a token invalid."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.server
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed

import stepwell.addons.jwt.verifier
from stepwell.addons.jwt.settings import JwtSettings
from stepwell.addons.jwt.verifier import LEEWAY_S, JwtVerifier
from stepwell.errors import ServiceError
from stepwell.requests.auth.reloaded_keys_file import KeysFileError
from stepwell.settings import Settings
from tests.api.running import Service, running_service
from tests.graphs import fold, write_models
from tests.requests.test_api_keys import bearer, key, write_keys_file
from tests.servers import Server

jwt = pytest.importorskip("jwt", reason="needs PyJWT: pip install 'stepwell[jwt]'")
from cryptography.hazmat.primitives import serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: E402

ISSUER, AUDIENCE = "https://id.example", "stepwell"
RSA, OTHER_RSA, WEAK_RSA = (rsa.generate_private_key(65537, bits) for bits in (2048, 2048, 1024))
EC, ED = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()
EC_384 = ec.generate_private_key(ec.SECP384R1())
ALGORITHMS = {"rsa": ("RS256", RSA), "ec": ("ES256", EC), "ed": ("EdDSA", ED), "weak": ("RS256", WEAK_RSA)}


def jwk(name: str, private: Any, algorithm: str, **more: str) -> dict[str, Any]:
    made = jwt.get_algorithm_by_name(algorithm).to_jwk(private.public_key(), as_dict=True)
    return {**made, "kid": name, **more}


def secret_jwk() -> dict[str, str]:
    return {"kty": "oct", "kid": "shared", "k": base64.urlsafe_b64encode(b"s" * 32).decode()}


def key_set(file: Path, *more: dict[str, Any]) -> Path:
    keys = [jwk(name, private, algorithm) for name, (algorithm, private) in ALGORITHMS.items()]
    file.write_text(json.dumps({"keys": [*keys, secret_jwk(), *more]}))
    return file


def claims(**changed: Any) -> dict[str, Any]:
    made = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": time.time() + 600,
        "sub": "pump",
        "tenant": "a",
        "scope": "step read",
    }
    return {name: value for name, value in {**made, **changed}.items() if value is not None}


def token(kid: str | None = "rsa", private: Any = None, algorithm: str | None = None, **changed: Any) -> str:
    usual, own = ALGORITHMS.get(kid or "rsa", ("RS256", RSA))
    headers = {} if kid is None else {"kid": kid}
    return str(jwt.encode(claims(**changed), private or own, algorithm or usual, headers=headers))


def handmade_token(header: dict[str, Any], signature: bytes | None = None, secret: bytes = b"") -> str:
    """Return a token that the library would refuse to create."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims())]
    signed = b".".join(parts)
    made = hmac.new(secret, signed, hashlib.sha256).digest() if signature is None else signature
    return (signed + b"." + base64.urlsafe_b64encode(made).rstrip(b"=")).decode()


def settings(keys: Path | str, **more: Any) -> JwtSettings:
    return JwtSettings(jwt_keys=str(keys), **{"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, **more})


@pytest.fixture
def tokens(tmp_path: Path) -> JwtVerifier:
    return JwtVerifier(settings(key_set(tmp_path / "jwks.json")))


def rejection(tokens: JwtVerifier, text: str) -> str:
    with pytest.raises(ServiceError) as caught:
        tokens.caller(text)
    assert caught.value.code == "unauthenticated"
    return caught.value.problem


# ------------------------------------------------------------------- accepted tokens


@pytest.mark.parametrize("kid", ["rsa", "ec", "ed"])
def test_a_valid_token_gives_tenant_scopes_and_subject(tokens: JwtVerifier, kid: str) -> None:
    for _ in range(2):  # the second time from the cache
        caller = tokens.caller(token(kid))

        assert (caller.tenant, set(caller.scopes), caller.key_id) == ("a", {"step", "read"}, "pump")


@pytest.mark.parametrize(
    ("scope_claims", "scopes"),
    [
        ({"scope": "openid step profile"}, {"step"}),
        ({"scope": None, "scp": ["read", "admin"]}, {"read", "admin"}),
        ({"scope": None, "scopes": ["metrics", 1]}, {"metrics"}),
        ({"scope": None}, set()),
        ({"scope": {"step": True}}, set()),
    ],
)
def test_unknown_scopes_are_ignored(tokens: JwtVerifier, scope_claims: dict[str, Any], scopes: set[str]) -> None:
    assert set(tokens.caller(token(**scope_claims)).scopes) == scopes


def test_one_of_several_audiences_is_enough(tokens: JwtVerifier) -> None:
    assert tokens.caller(token(aud=["other", AUDIENCE])).tenant == "a"


def test_clocks_may_differ_by_a_minute(tokens: JwtVerifier) -> None:
    assert tokens.caller(token(exp=time.time() - LEEWAY_S + 20)).tenant == "a"
    assert "expired" in rejection(tokens, token(exp=time.time() - LEEWAY_S - 20))


def test_the_tenant_claim_can_be_configured(tmp_path: Path) -> None:
    tokens = JwtVerifier(settings(key_set(tmp_path / "jwks.json"), jwt_tenant_claim="org"))

    assert tokens.caller(token(org="b", tenant="a")).tenant == "b"


# ------------------------------------------------------------------- rejected tokens


@pytest.mark.parametrize(
    "changed",
    [
        *({"exp": None}, {"aud": None}, {"iss": None}),
        *({"aud": "other"}, {"aud": [AUDIENCE + "x"]}, {"iss": "https://evil.example"}, {"iss": ISSUER + "/"}),
        *({"exp": 1}, {"exp": "soon"}, {"nbf": 9_999_999_999}),
        *({"tenant": None}, {"tenant": "a/b"}, {"tenant": ""}, {"tenant": 1}, {"tenant": ["a"]}),
    ],
    ids=str,
)
def test_a_token_with_a_missing_or_wrong_claim_is_rejected(tokens: JwtVerifier, changed: dict[str, Any]) -> None:
    rejection(tokens, token(**changed))


def test_a_signature_of_another_provider_is_rejected(tokens: JwtVerifier) -> None:
    rejection(tokens, token(private=OTHER_RSA))


@pytest.mark.parametrize("algorithm", ["none", "None", "nOnE", "", None, "HS256", 1])
def test_a_missing_signature_or_a_shared_secret_is_rejected(tokens: JwtVerifier, algorithm: Any) -> None:
    rejection(tokens, handmade_token({"alg": algorithm, "typ": "JWT", "kid": "rsa"}, signature=b""))
    rejection(tokens, handmade_token({"alg": algorithm, "typ": "JWT"}, signature=b""))


@pytest.mark.parametrize("kid", ["rsa", "shared"])
def test_a_public_key_is_not_accepted_as_a_shared_secret(tokens: JwtVerifier, kid: str) -> None:
    """A known attack: sign with HMAC, with the text of the public key as the secret."""
    public = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for secret in (public, b"s" * 32):
        rejection(tokens, handmade_token({"alg": "HS256", "typ": "JWT", "kid": kid}, secret=secret))


def test_the_algorithm_of_a_key_without_one_is_that_of_its_type(tmp_path: Path) -> None:
    tokens = JwtVerifier(settings(key_set(tmp_path / "jwks.json", jwk("ec384", EC_384, "ES384"))))

    assert tokens.caller(token("ec384", EC_384, "ES384")).tenant == "a"
    assert tokens.caller(token("rsa", RSA, "RS256")).tenant == "a"
    rejection(tokens, token("rsa", RSA, "PS256"))
    rejection(tokens, token("rsa", RSA, "RS512"))


def test_a_key_must_fit_its_algorithm_and_be_strong(tokens: JwtVerifier, tmp_path: Path) -> None:
    rejection(tokens, token("weak"))
    rejection(tokens, token("ec", RSA, "RS256"))
    sealing = JwtVerifier(settings(key_set(tmp_path / "two.json", jwk("seal", OTHER_RSA, "RS256", use="enc"))))
    rejection(sealing, token("seal", OTHER_RSA, "RS256"))


def test_a_token_must_name_its_key_unless_there_is_only_one(tokens: JwtVerifier, tmp_path: Path) -> None:
    single = tmp_path / "one.json"
    single.write_text(json.dumps({"keys": [jwk("rsa", RSA, "RS256")]}))

    rejection(tokens, token("nobody"))
    rejection(tokens, token(None))
    assert JwtVerifier(settings(single)).caller(token(None)).tenant == "a"


def test_a_token_nested_too_deeply_is_refused(tokens: JwtVerifier) -> None:
    deep = base64.urlsafe_b64encode(b"[" * 9_000).rstrip(b"=").decode()

    rejection(tokens, f"{deep}.e30.AA")


@pytest.mark.parametrize(
    "odd",
    [
        {"kty": "EC", "crv": "P-256", "kid": "odd"},
        {"kty": "RSA", "n": 5, "e": [1], "kid": "odd"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": {}},
        {"kty": "made up"},
        {**jwt.get_algorithm_by_name("RS256").to_jwk(OTHER_RSA, as_dict=True), "kid": "private"},
        "a key",
        None,
    ],
    ids=["no point", "odd numbers", "short point", "unknown type", "private", "text", "null"],
)
def test_what_is_no_public_key_is_left_out_of_a_set(tmp_path: Path, odd: Any) -> None:
    tokens = JwtVerifier(settings(key_set(tmp_path / "jwks.json", odd)))

    assert tokens.caller(token()).tenant == "a"
    rejection(tokens, token("private", OTHER_RSA, "RS256"))


def test_a_key_is_used_for_the_algorithm_that_it_names(tmp_path: Path) -> None:
    bound = jwk("bound", OTHER_RSA, "RS256", alg="PS256")
    tokens = JwtVerifier(settings(key_set(tmp_path / "jwks.json", bound)))

    assert tokens.caller(token("bound", OTHER_RSA, "PS256")).tenant == "a"
    rejection(tokens, token("bound", OTHER_RSA, "RS256"))


@pytest.mark.parametrize(
    "text", ["a.b.c", "..", "e30.e30.", "é.ü.ß", "\ud800.a.b", "x" * 20_000 + ".a.b", "W10.e30.AA"]
)
def test_text_that_is_no_token_is_rejected(tokens: JwtVerifier, text: str) -> None:
    rejection(tokens, text)


def test_a_rejection_does_not_repeat_the_token(tokens: JwtVerifier) -> None:
    text = token(private=OTHER_RSA, sub="canary", tenant="canary")
    problem = rejection(tokens, text)

    assert "canary" not in problem
    assert [part for part in text.split(".") if part in problem] == []


# ------------------------------------------------------------------- the provider's keys


def test_a_cached_token_expires(tmp_path: Path) -> None:
    now = time.time()
    later = 0.0
    tokens = JwtVerifier(settings(key_set(tmp_path / "jwks.json")), clock=lambda: now + later)
    text = token(exp=now + 60)
    tokens.caller(text)
    later = 60 + LEEWAY_S + 1

    assert "expired" in rejection(tokens, text)


def test_a_withdrawn_key_invalidates_its_tokens(tokens: JwtVerifier, tmp_path: Path) -> None:
    text = token()
    tokens.caller(text)
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [jwk("ec", EC, "ES256")]}))

    rejection(tokens, text)
    assert tokens.caller(token("ec")).tenant == "a"


def test_a_file_that_becomes_invalid_leaves_the_keys_in_force_and_is_logged_once(
    tokens: JwtVerifier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "jwks.json").write_text("{}")

    with caplog.at_level(logging.ERROR):
        assert [tokens.caller(token()).tenant for _ in range(3)] == ["a"] * 3
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("keys", "more", "said"),
    [
        ("none.json", {}, "none.json"),
        ("jwks.json", {"jwt_issuer": None}, "jwt_issuer"),
        ("jwks.json", {"jwt_audience": None}, "jwt_audience"),
        ("http://id.example/keys", {}, "https"),
        ("ftp://id.example/keys", {}, "https"),
    ],
)
def test_an_unsafe_configuration_is_refused_at_start(
    tmp_path: Path, keys: str, more: dict[str, Any], said: str
) -> None:
    key_set(tmp_path / "jwks.json")
    place = keys if "://" in keys else str(tmp_path / keys)
    chosen = settings(place, **more)

    with pytest.raises(KeysFileError, match=said):
        chosen.check(Settings())


class _Provider(http.server.BaseHTTPRequestHandler):
    document = b""
    asked = 0
    may_answer = threading.Event()

    def do_GET(self) -> None:
        type(self).asked += 1
        self.may_answer.wait(30)
        self.send_response(302 if self.path == "/moved" else 200)
        self.send_header("Location", "/keys")
        self.end_headers()
        self.wfile.write(self.document if self.path == "/keys" else b"")

    def log_message(self, *_: object) -> None:
        """Silence the log."""


@pytest.fixture
def address() -> Iterator[str]:
    """Where a provider has the keys of `_Provider.document`; at first, one of them."""
    _Provider.document, _Provider.asked = json.dumps({"keys": [jwk("rsa", RSA, "RS256")]}).encode(), 0
    _Provider.may_answer.set()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Provider) as provider:
        threading.Thread(target=provider.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{provider.server_address[1]}/keys"
        _Provider.may_answer.set()
        provider.shutdown()


def test_keys_at_a_url_are_fetched_once_for_many_tokens(address: str) -> None:
    tokens = JwtVerifier(settings(address))
    found = [tokens.caller(token(sub=str(n))).tenant for n in range(5)]
    rejection(tokens, token("nobody"))

    assert (found, _Provider.asked) == (["a"] * 5, 1)


def test_keys_are_not_fetched_from_where_an_address_leads_to(address: str, caplog: pytest.LogCaptureFixture) -> None:
    tokens = JwtVerifier(settings(address.replace("/keys", "/moved")))

    rejection(tokens, token())
    assert "cannot be fetched" in caplog.text


def test_whatever_an_address_answers_the_keys_stay_and_are_fetched_again(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepwell.addons.jwt.verifier, "_MIN_FETCH_INTERVAL_S", 0.01)
    monkeypatch.setattr(stepwell.addons.jwt.verifier, "_REFRESH_S", 0.01)
    good = _Provider.document
    tokens = JwtVerifier(settings(address))
    for answer in (b"[" * 200_000, b"", b"{}", b"[]", b'{"keys": 1}', b"\xff", b"<html>"):
        _Provider.document, seen = answer, _Provider.asked
        while _Provider.asked < seen + 3:  # by then one that began after this has been read
            assert tokens.caller(token()).tenant == "a"
    _Provider.document = good.replace(b'"rsa"', b'"new"')
    while "rsa" in tokens_named(tokens):
        pass

    assert tokens.caller(token("new", RSA, "RS256")).tenant == "a"


def test_no_request_waits_for_keys_and_a_name_that_is_not_known_brings_them(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepwell.addons.jwt.verifier, "_MIN_FETCH_INTERVAL_S", 0.01)
    tokens = JwtVerifier(settings(address))
    _Provider.document = _Provider.document.replace(b'"rsa"', b'"new"')
    _Provider.may_answer.clear()
    assert tokens_named(tokens) == ["rsa"]
    while _Provider.asked < 2:
        pass
    assert tokens_named(tokens) == ["rsa"]
    _Provider.may_answer.set()
    while tokens_named(tokens) != ["new"]:
        pass


def tokens_named(tokens: JwtVerifier) -> list[str]:
    """Return the names under which a token's key is known."""
    found = []
    for name in ("rsa", "new"):
        with contextlib.suppress(ServiceError):
            tokens.caller(token(name, RSA, "RS256"))
            found.append(name)
    return found


def test_an_unreachable_provider_at_start_does_not_stop_other_callers(caplog: pytest.LogCaptureFixture) -> None:
    tokens = JwtVerifier(settings("http://127.0.0.1:1/keys"))

    rejection(tokens, token())
    assert "cannot be fetched" in caplog.text


# ------------------------------------------------------------------- in a service


@pytest.fixture(scope="module")
def both(shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that accepts API keys and tokens."""
    folder = tmp_path_factory.mktemp("both")
    with running_service(
        shared_redis.url,
        write_models(folder / "models", fold),
        api_keys_file=write_keys_file(folder / "keys.json", key("full", tenant="a")),
        jwt_keys=str(key_set(folder / "jwks.json")),
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
    ) as one:
        yield one


def test_keys_and_tokens_of_a_tenant_reach_the_same_streams(both: Service, stream: str) -> None:
    path = both.path("fold", stream, "step")
    steps = [both.http.post(path, json={"inputs": [1]}, headers=bearer(who)) for who in ("full", token(), "full")]

    assert [one.json()["step"] for one in steps] == [1, 2, 3]


def test_a_token_without_the_scope_is_forbidden(both: Service) -> None:
    answers: list[httpx2.Response] = [
        both.http.get("/v1/info", headers=bearer(token(scope="step"))),
        both.http.get("/v1/info", headers=bearer(token(exp=1))),
        both.http.get(f"/v1/info?access_token={token()}"),
    ]

    assert [one.status_code for one in answers] == [403, 401, 401]


def test_a_cached_request_head_is_rejected_once_its_token_has_expired(both: Service, stream: str) -> None:
    """The fast lane caches request heads; a cached authorization must not outlive its token."""
    headers = bearer(token(exp=time.time() - LEEWAY_S + 1.5))
    answers = [both.http.post(both.path("fold", stream, "step"), json={"inputs": [1]}, headers=headers)]
    while answers[-1].status_code == 200:
        answers.append(both.http.post(both.path("fold", stream, "step"), json={"inputs": [1]}, headers=headers))
        assert time.time() < jwt.decode(headers["authorization"][7:], options={"verify_signature": False})["exp"] + 70

    assert answers[0].status_code == 200
    assert answers[-1].status_code == 401


def test_a_cached_request_head_is_rejected_once_its_key_is_withdrawn(
    shared_redis: Server, tmp_path: Path, stream: str
) -> None:
    headers = bearer(token())
    known: dict[str, Any] = {
        "jwt_keys": str(key_set(tmp_path / "jwks.json")),
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
    }
    with running_service(shared_redis.url, write_models(tmp_path / "models", fold), **known) as own:
        path = own.path("fold", stream, "step")
        before = [own.http.post(path, json={"inputs": [1]}, headers=headers).status_code for _ in range(3)]
        (tmp_path / "jwks.json").write_text(json.dumps({"keys": [jwk("ec", EC, "ES256")]}))
        after = own.http.post(path, json={"inputs": [1]}, headers=headers).status_code

    assert (before, after) == ([200, 200, 200], 401)


def test_a_feed_is_closed_when_its_token_expires(both: Service, stream: str) -> None:
    with both.feed("fold", stream, additional_headers=bearer(token(exp=time.time() - LEEWAY_S + 2))) as feed:
        answers: list[dict[str, Any]] = []
        while not answers or "error" not in answers[-1]:
            feed.send('{"inputs": [1]}')
            answers.append(json.loads(feed.recv()))
        with pytest.raises(ConnectionClosed) as closed:
            feed.recv()

    assert answers[0]["step"] == 1
    assert answers[-1]["error"]["code"] == "unauthenticated"
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
