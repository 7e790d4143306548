"""`BrokerUrl`: the URL of a topic, stream, queue or file, and what its broker opens."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from stepwell.addons.connect.brokers import FILE, KAFKA
from stepwell.addons.connect.brokers.interface import Broker, BrokerModule, MessageReader, MessageWriter, ReaderOptions
from stepwell.addons.connect.login import LOGIN_KEYS, Login, LoginSection, Secret, login_of_options
from stepwell.addons.connect.messages import ConnectUsageError
from stepwell_export.runtime.errors import MissingExtraError
from stepwell_export.runtime.registered import load, registered

_PLACEHOLDER: Final = "{stream}"
_NO_SECRETS: Final = frozenset(("user", "ca", "cert", "key"))
_HOSTS: Final = re.compile(r"(?:[^:\[\]]*|\[[^\]]*\])(?::[0-9]*)?(?:,[^:]*(?::[0-9]*)?)*")


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """A parsed URL.

    Attributes:
        text: The URL as given, without its secrets.
        scheme: The name under which the broker is registered: `kafka`, `redis`, `rediss`, ..
        broker: What is registered under that name.
        hosts: `HOST:PORT` or `HOST`, several separated by commas; empty for files.
        login: How to log in.
        path: What follows the host, decoded, without its first slash; for files the whole path.
        options: The options after `?`.
    """

    text: str
    scheme: str
    broker: Broker
    hosts: str
    login: Login
    path: str
    options: Mapping[str, str]

    @classmethod
    def parse(cls, text: str, login: LoginSection | None = None, *, table: str = "") -> BrokerUrl:
        """Parse a URL.

        Args:
            text: The URL.
            login: The table with its login, whose keys may also be options of the URL; None: there is none.
            table: The name of that table.

        Raises:
            ConnectUsageError: The scheme, an option or a key of the login is unknown, or a part is missing.
            AddonError: The package that registers the scheme cannot be used.
        """
        parts = urlsplit(text, allow_fragments=False)  # `#` is a part of MQTT's filters
        known = registered("stepwell.brokers")
        if parts.scheme not in known:
            raise ConnectUsageError(
                f"{_hidden(text)!r} has the scheme {parts.scheme!r}; expected one of {', '.join(known)}.",
                fix=f"Give a URL such as {KAFKA.form} or {FILE.form}.",
            )
        broker: Broker = load(known[parts.scheme], Broker)
        given, _, hosts = parts.netloc.rpartition("@")
        user, colon, password = given.partition(":")
        shown = text.replace(f":{password}@", ":***@") if colon else text
        if broker.has_host and "@" in text and not given and not _HOSTS.fullmatch(hosts):
            raise ConnectUsageError(
                f"A {parts.scheme} URL has a password with one of / ? #.",
                fix="Write these as %2F, %3F and %23, or name the password with password_env or password_file.",
            )
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        keys = login_of_options(options) if broker.login else {}
        others = {name: value for name, value in options.items() if name not in keys}
        for name in others:
            if name not in broker.options:
                allowed = ", ".join(broker.options) or "none"
                raise ConnectUsageError(f"{shown!r} has the option {name!r}; {parts.scheme} URLs have: {allowed}.")
        path = unquote(parts.path)
        if broker.has_host:
            path = path.removeprefix("/")
        if not (others.get(broker.place) if broker.place else path) or (broker.has_host and not hosts):
            raise ConnectUsageError(f"{shown!r} is incomplete; expected {broker.form}.")
        where = "the URL"
        if login is not None:
            if keys or given:
                raise ConnectUsageError(
                    f"{_hidden(text)!r} has a login, and there is the table {table}.", fix="Give one of them."
                )
            keys, where = {key: value for key in LOGIN_KEYS if (value := getattr(login, key)) is not None}, table
        if user:
            keys["user"] = unquote(user)
        for key in keys:
            if key.partition("_")[0] not in broker.login:
                raise ConnectUsageError(
                    f"{where} has the key {key!r}; logins of {parts.scheme} have {', '.join(broker.login) or 'none'}.",
                    fix="Secrets end with _env or _file.",
                )
        inline = Secret("password", "url", unquote(password)) if colon else None
        if user and inline is None and broker.user_is_token and login is None and not keys.keys() - _NO_SECRETS:
            inline, shown = Secret("token", "url", unquote(user)), _hidden(text)
            del keys["user"]
        made = Login.of(LoginSection(**keys), inline=inline, is_encrypted=broker.is_encrypted, where=where)
        return cls(shown, parts.scheme, broker, hosts, made, path, others)

    def reader(self, options: ReaderOptions) -> MessageReader:
        """Return the reader of what the URL names, which is not opened yet.

        Raises:
            MissingExtraError: The broker's client library is not installed.
            ConnectUsageError: The URL lacks something that reading needs.
        """
        return self._module().open_reader(self, options)

    def writer(self, body_format: str) -> MessageWriter:
        """Return the writer, which is not opened yet; raises as `reader` does."""
        return self._module().open_writer(self, body_format)

    def _module(self) -> BrokerModule:
        try:
            module: Any = importlib.import_module(self.broker.module)
        except ModuleNotFoundError as exc:
            raise MissingExtraError(
                f"{self.scheme}:// needs the package {exc.name}, which is not installed.", fix=self.broker.install
            ) from exc
        return cast("BrokerModule", module)

    @property
    def place(self) -> tuple[str, str, str, str]:
        """What identifies the topic, stream, queue or file."""
        return self.scheme, self.hosts, self.path, self.options.get(self.broker.place, "")

    def address(self, default_port: int) -> tuple[str, int]:
        """Return the host and the port of a broker with one address.

        Raises:
            ConnectUsageError: The port is not a number.
        """
        host, colon, port = self.hosts.rpartition(":")
        if not colon or host.endswith(":") or "]" in port:
            return self.hosts.strip("[]"), default_port
        if not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
            raise ConnectUsageError(f"{self.text!r} has the port {port!r}; expected a number from 1 to 65535.")
        return host.strip("[]"), int(port)

    @property
    def is_per_stream(self) -> bool:
        """Whether each stream has a target of its own."""
        return _PLACEHOLDER in self.path

    def target(self, stream: str) -> str:
        """Return the path with the stream's id in place of `{stream}`."""
        return self.path.replace(_PLACEHOLDER, stream)

    def wildcard(self, any_segment: str) -> str:
        """Return the path as a filter: `{stream}` is replaced by the broker's wildcard of one segment."""
        return self.path.replace(_PLACEHOLDER, any_segment)


def stream_segment(url: BrokerUrl) -> re.Pattern[str] | None:
    """Return the expression whose only group is the segment `{stream}` of a topic; None: the whole topic."""
    if _PLACEHOLDER not in url.path:
        return None
    separator = url.broker.separator
    one = f"[^{re.escape(separator)}]+"
    patterns = {_PLACEHOLDER: f"({one})", "+": one, "*": one, "#": ".*", ">": ".+"}
    parts = [patterns.get(part, re.escape(part)) for part in url.path.split(separator)]
    return re.compile(re.escape(separator).join(parts))


def _hidden(text: str) -> str:
    """Return a URL without its user and password."""
    scheme, separator, rest = text.partition("://")
    return f"{scheme}{separator}***@{rest.rpartition('@')[2]}" if "@" in rest else text
