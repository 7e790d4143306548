"""`Login`: how a connector logs in to a broker, and `Secret`, whose value no text of it has."""

from __future__ import annotations

import asyncio
import os
import shlex
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from msgspec import Struct

from stepwell.addons.connect.messages import BrokerUnavailableError, ConnectError, ConnectUsageError, LoginRefusedError

_COMMAND_S: Final = 8.0
_HANDSHAKE_S: Final = 3.0
_ALERT_S: Final = 1.0
_HIDDEN: Final = "***"
_WAYS: Final = ("env", "file", "command")
_NO_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE", "PACKET_LENGTH_TOO_LONG")


class LoginSection(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How to log in; each broker has some of these keys.

    Attributes:
        user: The user's name.
        password_env: The environment variable with the password.
        password_file: The file with the password; its last newline is no part of it, as in every file of a secret.
        token_env: The environment variable with a token.
        token_file: The file with a token.
        token_command: The command that prints a token, as words or as one text that is divided as a shell does.
        nkey_env: The environment variable with the seed of a key pair of NATS.
        nkey_file: The file with the seed.
        creds: The credentials file of NATS, with a JWT and a seed.
        sasl: The mechanism of SASL.
        ca: The file with the certificates of the authorities that are trusted; None: those of the system.
        cert: The file with the client's certificate.
        key: The file with its private key; None: it is in the same file.
    """

    user: str | None = None
    password_env: str | None = None
    password_file: str | None = None
    token_env: str | None = None
    token_file: str | None = None
    token_command: str | list[str] | None = None
    nkey_env: str | None = None
    nkey_file: str | None = None
    creds: str | None = None
    sasl: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None


LOGIN_KEYS: Final = LoginSection.__struct_fields__


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A password, a token or a seed, and where it is read.

    Attributes:
        name: What it is: `password`, `token` or `nkey`.
        way: Where it is read: `env`, `file` or `command`; `url`: it is in the URL itself.
        place: The variable, the path, the words of the command, or the secret.
    """

    name: str
    way: Literal["env", "file", "command", "url"]
    place: str | Sequence[str]

    @property
    def origin(self) -> str:
        """Where it is from, for messages."""
        if self.way == "url":
            return f"the {self.name} in the URL"
        place = self.place if isinstance(self.place, str) else self.place[0]
        return f"{self.name}_{self.way} {place}"

    def __repr__(self) -> str:
        return _HIDDEN

    async def read(self) -> str:
        """Return its value.

        Raises:
            LoginRefusedError: It is not there, or is empty.
        """
        value = await self._value()
        if not value and self.way != "url":
            raise LoginRefusedError(f"{self.origin} is empty.", fix=f"Write the {self.name} there.")
        return value

    async def _value(self) -> str:
        if self.way == "command":
            return await self._printed()
        assert isinstance(self.place, str)
        if self.way == "url":
            return self.place
        if self.way == "env":
            if self.place not in os.environ:
                raise LoginRefusedError(f"{self.origin}: the environment has no such variable.", fix="Set it.")
            return os.environ[self.place]
        try:
            text = await asyncio.to_thread(Path(self.place).read_bytes)
            return text.decode().removesuffix("\n").removesuffix("\r")
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
            raise LoginRefusedError(f"{self.origin} cannot be read: {reason}.", fix="Check the path.") from None

    async def _printed(self) -> str:
        """Return what the command prints; its standard error may have secrets, and is not read."""
        words = shlex.split(self.place) if isinstance(self.place, str) else self.place
        fix = f"Run the command by hand: it has to print the {self.name} and to end with 0 within {_COMMAND_S:g} s."
        process = None
        try:
            async with asyncio.timeout(_COMMAND_S):
                process = await asyncio.create_subprocess_exec(
                    *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL,
                )  # fmt: skip
                printed, _ = await process.communicate()
        except TimeoutError:
            if process is not None:
                process.kill()
            raise LoginRefusedError(f"{self.origin} has not ended within {_COMMAND_S:g} s.", fix=fix) from None
        except (OSError, ValueError) as exc:
            raise LoginRefusedError(f"{self.origin} cannot be run: {exc}.", fix=fix) from None
        if process.returncode:
            raise LoginRefusedError(f"{self.origin} has ended with {process.returncode}.", fix=fix)
        return printed.decode(errors="replace").strip()


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """What a connection is opened with; it is read anew for each one.

    Attributes:
        user: The user's name, or None.
        password: The password, or None.
        token: The token, or None.
        nkey: The seed of a key pair of NATS, or None.
        ssl_context: The trusted authorities and the client's certificate; None: the connection has no TLS.
    """

    user: str | None = None
    password: str | None = None
    token: str | None = None
    nkey: str | None = None
    ssl_context: ssl.SSLContext | None = None


@dataclass(slots=True, repr=False)
class Login:
    """How to log in to a broker.

    Attributes:
        section: The keys that are no secrets.
        secrets: By name, the secrets.
        is_encrypted: Whether the connection has TLS.
        where: Where it was given, for messages: `[from.login]` or `the URL`.
    """

    section: LoginSection = field(default_factory=LoginSection)
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    is_encrypted: bool = False
    where: str = "the URL"
    _values: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, section: LoginSection, *, inline: Secret | None, is_encrypted: bool, where: str) -> Login:
        """Return the login that a section describes.

        Args:
            section: The keys.
            inline: The secret in the URL itself, or None.
            is_encrypted: Whether the URL's scheme stands for TLS; a certificate does, too.
            where: Where the keys were given.

        Raises:
            ConnectUsageError: A secret is given twice, or a part is missing.
        """
        found = {} if inline is None else {inline.name: inline}
        for key in LOGIN_KEYS:
            name, _, way = key.partition("_")
            value = getattr(section, key)
            if way not in _WAYS or value is None:
                continue
            if name in found:
                raise ConnectUsageError(f"{where} has two ways to read the {name}.", fix=f"Keep {key} or the other.")
            found[name] = Secret(name, way, value)  # type: ignore[arg-type]  # it is one of the ways
        if section.key is not None and section.cert is None:
            raise ConnectUsageError(f"{where} has a key without a cert.", fix="Give cert, the client's certificate.")
        has_files = section.ca is not None or section.cert is not None
        return cls(section, found, is_encrypted or has_files, where)

    def __repr__(self) -> str:
        """Return the login as it is named in messages: without any secret."""
        parts = [] if self.section.user is None else [f"of user {self.section.user!r}"]
        origins = [secret.origin for secret in self.secrets.values()]
        origins += [f"{key} {getattr(self.section, key)}" for key in ("creds", "cert") if getattr(self.section, key)]
        parts += [f"with {' and '.join(origins)}"] if origins else []
        parts += [f"by {self.section.sasl}"] if self.section.sasl else []
        return " ".join([*parts, f"({self.where})"]) if parts else "without a user"

    async def credentials(self) -> Credentials:
        """Return what the next connection is opened with: files and commands are read again.

        Raises:
            LoginRefusedError: A secret or a certificate cannot be read.
        """
        values = {name: await secret.read() for name, secret in self.secrets.items()}
        self._values.update(filter(None, values.values()))
        return Credentials(self.section.user, **values, ssl_context=self._ssl_context())

    def masked(self, words: object) -> str:
        """Return words of a broker or a library, in which no secret is left."""
        text = str(words)
        for value in sorted(self._values, key=len, reverse=True):
            text = text.replace(value, _HIDDEN)
        return text

    def refused(self, place: str, words: object) -> LoginRefusedError:
        """Return the error of a broker at `place` that rejects this login with its words."""
        return LoginRefusedError(
            f"{place} rejects the login {self}: {self.masked(words).rstrip('.')}.",
            fix="Check the login, and what the broker admits.",
        )

    async def failure(self, place: str, address: tuple[str, int], error: BaseException) -> ConnectError:
        """Return the error for a connection that could not be opened.

        A broker's refusal of the client's certificate arrives after the handshake, and some libraries say no more than
        that a connection was lost. So it is asked for again.

        Args:
            place: The broker, for messages.
            address: Its host and port.
            error: What the library has raised.
        """
        words = tls_refusal(error) or (await self._handshake_refusal(address) if self.is_encrypted else None)
        if words is not None:
            return self.refused(place, words)
        return BrokerUnavailableError(f"{place} does not respond: {self.masked(error) or type(error).__name__}")

    async def _handshake_refusal(self, address: tuple[str, int]) -> str | None:
        try:
            async with asyncio.timeout(_HANDSHAKE_S):
                reader, writer = await asyncio.open_connection(*address, ssl=self._ssl_context())
                try:
                    async with asyncio.timeout(_ALERT_S):
                        await reader.read(1)
                finally:
                    writer.close()
        except OSError as exc:  # a TimeoutError is one
            return tls_refusal(exc)
        return None

    def _ssl_context(self) -> ssl.SSLContext | None:
        if not self.is_encrypted:
            return None
        section, key = self.section, "ca"
        try:
            context = ssl.create_default_context(cafile=section.ca)
            if section.cert is not None:
                key = "cert"
                context.load_cert_chain(section.cert, section.key, password=_no_password)
        except (OSError, ValueError) as exc:
            raise LoginRefusedError(
                f"{key} {getattr(section, key)} of {self.where} cannot be used: {exc}.",
                fix="Give a file in PEM; a private key without a password.",
            ) from exc
        return context


def tls_refusal(error: BaseException | None) -> str | None:
    """Return why one side has refused the other in the TLS handshake behind an error; None: it has not."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted: {error.verify_message}"
        if isinstance(error, ssl.SSLError):
            reason = error.reason or ""
            if "ALERT" in reason:
                return f"the TLS handshake is refused: {reason.lower().replace('_', ' ')}"
            if reason in _NO_TLS:
                return "it has no TLS on this port"
        error = error.__cause__ or error.__context__
    return None


def login_of_options(options: Mapping[str, str]) -> dict[str, Any]:
    """Return the keys of a login among the options of a URL."""
    return {name: value for name, value in options.items() if name in LOGIN_KEYS}


def _no_password() -> str:
    raise ValueError("the private key has a password")
