"""Keys and JWTs of NATS, as `nsc` makes them: an operator signs an account, which signs a user."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from typing import Any

import pytest


def user() -> tuple[bytes, str]:
    """Return the seed and the public key of a user."""
    seed, pair = _pair("USER")
    return seed, pair.public_key.decode()


def operator_with_a_user() -> tuple[str, str]:
    """Return the lines of a server's configuration, and the credentials file of a user."""
    _, operator = _pair("OPERATOR")
    _, account = _pair("ACCOUNT")
    _, system = _pair("ACCOUNT")
    seed, alice = _pair("USER")
    free = {
        "subs": -1,
        "data": -1,
        "payload": -1,
        "imports": -1,
        "exports": -1,
        "wildcards": True,
        "conn": -1,
        "leaf": -1,
    }
    storage = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
    named = {}
    for name, pair, more in (("plant", account, storage), ("system", system, {})):
        claims = {"limits": free | more, "type": "account", "version": 2}
        named[pair.public_key.decode()] = _jwt(name, pair, operator, claims)
    operator_claims = {"type": "operator", "version": 2, "system_account": system.public_key.decode()}
    root = _jwt("operator", operator, operator, operator_claims)
    token = _jwt("alice", alice, account, {"subs": -1, "data": -1, "payload": -1, "type": "user", "version": 2})
    preload = ", ".join(f"{key}: {jwt}" for key, jwt in named.items())
    config = f"operator: {root}\nresolver: MEMORY\nresolver_preload: {{ {preload} }}\n"
    config += f"system_account: {system.public_key.decode()}\n"
    creds = (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed.decode()}\n------END USER NKEY SEED------\n"
    )
    return config, creds


def _pair(kind: str) -> tuple[bytes, Any]:
    """Return a new seed, and its pair of keys."""
    nkeys = pytest.importorskip("nkeys", reason="nkeys is not installed: pip install 'stepwell[connect]'")
    seed = nkeys.encode_seed(os.urandom(32), getattr(nkeys, f"PREFIX_BYTE_{kind}"))
    return seed, nkeys.from_seed(bytearray(seed))


def _jwt(name: str, subject: Any, issuer: Any, claims: dict[str, Any]) -> str:
    body = {
        "iat": int(time.time()),
        "iss": issuer.public_key.decode(),
        "name": name,
        "sub": subject.public_key.decode(),
        "nats": claims,
    }
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
    words = ".".join(_encoded(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, body))
    return f"{words}.{_encoded(issuer.sign(words.encode()))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
