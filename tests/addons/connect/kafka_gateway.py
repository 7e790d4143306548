"""`KafkaGateway`: SASL and TLS of Kafka's protocol before a broker that has neither.

Sources: KIP-43, KIP-152, RFC 4616 (PLAIN), RFC 5802 (SCRAM), RFC 7628 (OAUTHBEARER).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import secrets
import select
import socket
import ssl
import struct
import threading
from collections.abc import Generator
from types import TracebackType

_HANDSHAKE, _AUTHENTICATE, _API_VERSIONS = 17, 36, 18
_ILLEGAL_STATE, _UNSUPPORTED, _FAILED = 34, 33, 58
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")


class RefusedError(Exception):
    """The login is wrong."""


class KafkaGateway:
    """Relays to a broker whoever has logged in.

    Attributes:
        port: Where it listens.
        passwords: The users.
        token: The token that is valid now.
        logins: The mechanisms by which somebody was let in.
    """

    def __init__(self, port: int, context: ssl.SSLContext, passwords: dict[str, str], token: str) -> None:
        self.port = port
        self.passwords = passwords
        self.token = token
        self.target = 0
        self.logins: list[str] = []
        self._context = context
        self._open: set[ssl.SSLSocket] = set()
        self._listener = socket.create_server(("127.0.0.1", port))

    def __enter__(self) -> KafkaGateway:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.end_connections()

    def end_connections(self) -> None:
        """End all connections, as a broker does whose sessions are over."""
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError), contextlib.ExitStack() as stack:
            stack.enter_context(raw)
            client = stack.enter_context(self._context.wrap_socket(raw, server_side=True))
            broker = stack.enter_context(socket.create_connection(("127.0.0.1", self.target)))
            self._open.add(client)
            stack.callback(self._open.discard, client)
            if self._log_in(client, broker):
                _relay(client, broker)

    def _log_in(self, client: ssl.SSLSocket, broker: socket.socket) -> bool:
        steps: Generator[bytes, bytes, bytes] | None = None
        mechanism = ""
        while True:
            frame = _frame(client)
            key, version, number, length = struct.unpack_from(">hhih", frame)
            body = frame[10 + max(length, 0) :]
            if key == _API_VERSIONS:
                _send(broker, frame)
                _send(client, _frame(broker))
            elif key == _HANDSHAKE:
                mechanism = body[2:].decode()
                error = 0 if mechanism in MECHANISMS else _UNSUPPORTED
                names = b"".join(struct.pack(">h", len(one)) + one.encode() for one in MECHANISMS)
                _send(client, struct.pack(">ihi", number, error, len(MECHANISMS)) + names)
                steps = self._steps(mechanism)
                next(steps)
            elif key == _AUTHENTICATE and steps is not None:
                error, words, out, is_last = 0, "", b"", False
                try:
                    out = steps.send(body[4:])
                except StopIteration as exc:
                    out, is_last = exc.value, True
                except RefusedError as exc:
                    error, words, is_last = _FAILED, str(exc), True
                text = struct.pack(">h", len(words)) + words.encode()
                lifetime = struct.pack(">q", 0) if version else b""
                _send(client, struct.pack(">ih", number, error) + text + struct.pack(">i", len(out)) + out + lifetime)
                if is_last:
                    self.logins += [] if error else [mechanism]
                    return not error
            else:
                return False

    def _steps(self, mechanism: str) -> Generator[bytes, bytes, bytes]:
        first = yield b""
        if mechanism == "PLAIN":
            _, user, password = first.decode().split("\0")
            if self.passwords.get(user) != password:
                raise RefusedError("Authentication failed: Invalid username or password")
            return b""
        if mechanism == "OAUTHBEARER":
            if f"\x01auth=Bearer {self.token}\x01" not in first.decode():
                raise RefusedError("Authentication failed: the token has expired")
            return b""
        digest = {"SCRAM-SHA-256": hashlib.sha256, "SCRAM-SHA-512": hashlib.sha512}[mechanism]
        bare = first.decode().removeprefix("n,,")
        fields = dict(one.split("=", 1) for one in bare.split(","))
        salt, nonce = secrets.token_bytes(12), fields["r"] + secrets.token_hex(8)
        server_first = f"r={nonce},s={base64.b64encode(salt).decode()},i=4096"
        final = (yield server_first.encode()).decode()
        without_proof, _, proof = final.rpartition(",p=")
        salted = hashlib.pbkdf2_hmac(digest().name, self.passwords.get(fields["n"], "").encode(), salt, 4096)
        words = f"{bare},{server_first},{without_proof}".encode()
        client_key = hmac.digest(salted, b"Client Key", digest)
        signature = hmac.digest(digest(client_key).digest(), words, digest)
        if bytes(a ^ b for a, b in zip(client_key, signature, strict=True)) != base64.b64decode(proof):
            raise RefusedError(f"Authentication failed due to invalid credentials with {mechanism}")
        verifier = hmac.digest(hmac.digest(salted, b"Server Key", digest), words, digest)
        return b"v=" + base64.b64encode(verifier)


def _frame(one: socket.socket) -> bytes:
    (size,) = struct.unpack(">i", _exactly(one, 4))
    return _exactly(one, size)


def _exactly(one: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        data = one.recv(size - len(found))
        if not data:
            raise EOFError
        found += data
    return found


def _send(one: socket.socket, frame: bytes) -> None:
    one.sendall(struct.pack(">i", len(frame)) + frame)


def _relay(client: ssl.SSLSocket, broker: socket.socket) -> None:
    while True:
        ready = [client] if client.pending() else select.select([client, broker], [], [])[0]
        for one in ready:
            data = one.recv(65536)
            if not data:
                return
            (broker if one is client else client).sendall(data)
