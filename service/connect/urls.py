"""`BrokerUrl`: the URL of a topic, stream, queue or file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from service.connect.messages import ConnectUsageError

_FORMS: Final = {
    "kafka": "kafka://HOST:9092/TOPIC?group=NAME",
    "redis": "redis://HOST:6379/0?stream=NAME&group=NAME",
    "mqtt": "mqtt://HOST/TOPIC/FILTER?client=NAME",
    "nats": "nats://HOST/SUBJECT?durable=NAME",
    "amqp": "amqp://HOST/QUEUE",
    "file": "file:///PATH.jsonl",
}
_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "kafka": ("group", "member"),
    "redis": ("stream", "group"),
    "mqtt": ("client",),
    "nats": ("durable",),
    "amqp": (),
    "file": (),
}
_ENCRYPTED: Final = {"kafkas": "kafka", "rediss": "redis", "mqtts": "mqtt", "amqps": "amqp"}
_PLACEHOLDER: Final = "{stream}"


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """A parsed URL.

    Attributes:
        text: The URL as given, without its password.
        scheme: `kafka`, `redis`, .. or its form with encryption, such as `rediss`.
        hosts: `HOST:PORT` or `HOST`, several separated by commas; empty for files.
        user: The user's name, or None.
        password: The password, or None.
        path: What follows the host, decoded, without its first slash; for files the whole path.
        options: The options after `?`.
    """

    text: str
    scheme: str
    hosts: str
    user: str | None
    password: str | None
    path: str
    options: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> BrokerUrl:
        """Parse a URL.

        Raises:
            ConnectUsageError: The scheme or an option is unknown, or a part is missing.
        """
        parts = urlsplit(text, allow_fragments=False)  # `#` is a part of MQTT's filters
        kind = _ENCRYPTED.get(parts.scheme, parts.scheme)
        if kind not in _FORMS:
            raise ConnectUsageError(
                f"{text!r} has the scheme {parts.scheme!r}; expected one of {', '.join(_FORMS)}.",
                fix=f"Give a URL such as {_FORMS['kafka']} or {_FORMS['file']}.",
            )
        login, _, hosts = parts.netloc.rpartition("@")
        user, colon, password = login.partition(":")
        shown = text.replace(f":{password}@", ":***@") if colon else text
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        for name in options:
            if name not in _OPTIONS[kind]:
                allowed = ", ".join(_OPTIONS[kind]) or "none"
                raise ConnectUsageError(f"{shown!r} has the option {name!r}; {kind} URLs have: {allowed}.")
        path = unquote(parts.path)
        if kind != "file":
            path = path.removeprefix("/")
        url = cls(
            shown, parts.scheme, hosts, unquote(user) or None, unquote(password) if colon else None, path, options
        )
        if not (url.stream if kind == "redis" else path) or (kind != "file" and not hosts):
            raise ConnectUsageError(f"{shown!r} is incomplete; expected {_FORMS[kind]}.")
        return url

    @property
    def is_encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return self.scheme in _ENCRYPTED

    @property
    def stream(self) -> str:
        """The name of a Redis stream; empty if it is missing."""
        return self.options.get("stream", "")

    @property
    def place(self) -> tuple[str, str, str, str]:
        """What identifies the topic, stream, queue or file."""
        return self.scheme, self.hosts, self.path, self.stream

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
    separator = "." if url.scheme == "nats" else "/"
    one = f"[^{re.escape(separator)}]+"
    patterns = {_PLACEHOLDER: f"({one})", "+": one, "*": one, "#": ".*", ">": ".+"}
    parts = [patterns.get(part, re.escape(part)) for part in url.path.split(separator)]
    return re.compile(re.escape(separator).join(parts))
