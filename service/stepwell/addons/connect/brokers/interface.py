"""`Broker`, `MessageReader` and `MessageWriter`: what a broker registers, and what its module provides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from stepwell.addons.connect.messages import BrokerMessage, OutMessage, Undeliverable

if TYPE_CHECKING:
    from stepwell.addons.connect.urls import BrokerUrl
    from stepwell.addons.recorded.csv_header import CsvHeader


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker. An entry point of the group `stepwell.brokers` is one; its name is the scheme of the broker's URLs.

    Attributes:
        form: A URL with all its parts, for messages: `kafka://HOST:9092/TOPIC?group=NAME`.
        module: The module with `open_reader` and `open_writer`, as in `BrokerModule`. It is imported when a URL of the
            broker is opened: what it imports may be missing until then.
        options: What a URL may have after `?`.
        install: How the client library is installed, for the message if it is missing.
        place: The option that names the topic, stream or queue; empty: the path does.
        has_host: Whether URLs have a host.
        has_positions: Whether the broker numbers its messages, so that one that is delivered twice is found.
        acknowledges: Whether the broker keeps what was acknowledged; if not, a reader begins with the first message.
        has_segments: Whether a topic is a path of segments, one of which may be the stream's id.
        separator: What stands between two segments.
        is_encrypted: Whether this is the scheme for connections by TLS.
        login: What a login may have: `user`, `password`, `token`, `nkey`, `creds`, `sasl`, `ca`, `cert`, `key`.
        user_is_token: Whether a user in the URL who has no password is a token.
    """

    form: str
    module: str
    options: tuple[str, ...] = ()
    install: str = ""
    place: str = ""
    has_host: bool = True
    has_positions: bool = True
    acknowledges: bool = True
    has_segments: bool = False
    separator: str = "/"
    is_encrypted: bool = False
    login: tuple[str, ...] = ("user", "password")
    user_is_token: bool = False


class BrokerModule(Protocol):
    """What the module of a broker has."""

    def open_reader(self, url: BrokerUrl, options: ReaderOptions) -> MessageReader:
        """Return the reader of a URL, which is not opened yet.

        Raises:
            ConnectUsageError: The URL lacks something that reading needs.
        """

    def open_writer(self, url: BrokerUrl, body_format: str) -> MessageWriter:
        """Return the writer of a URL, which is not opened yet; raises as `open_reader` does.

        Args:
            url: The URL.
            body_format: `json` or `msgpack`.
        """


@dataclass(frozen=True, slots=True)
class ReaderOptions:
    """How a reader reads.

    Attributes:
        once: End at what was there when the reader was opened.
        preview: Only show messages: join no group, acknowledge nothing, and read from the oldest message on.
        header: The first line of a CSV file, which is no message; None: the source is something else.
        most_open: Messages that are open at a time at most, and acknowledged by `acknowledge_some`; None: a poll is
            acknowledged as a whole.
    """

    once: bool = False
    preview: bool = False
    header: CsvHeader | None = None
    most_open: int | None = None


class MessageReader(Protocol):
    """Reads the messages of one topic, stream, queue or file, in order.

    Laws, which the tests of each broker check:

    1. After `open`, messages that were not acknowledged are returned before newer ones, in their order.
    2. A message that was acknowledged is not returned again, unless the broker loses the acknowledgement.
    3. Only one reader of a group returns the messages of one stream at a time; the others wait in `poll`.
    4. `open` may be called again after `close`.
    """

    async def open(self) -> None:
        """Connect.

        Raises:
            BrokerUnavailableError: The broker does not respond; the same call may succeed later.
            ConnectError: What the URL names cannot be read.
        """

    async def poll(self, limit: int) -> Sequence[BrokerMessage]:
        """Return the next messages; none if there are none within about half a second.

        Args:
            limit: Maximum number of messages.

        Raises:
            BrokerUnavailableError: The connection was lost. After `close` and `open`, reading continues with what was
                not acknowledged.
        """

    async def acknowledge(self, messages: Sequence[BrokerMessage]) -> None:
        """Mark the messages of the last poll as done; raises as `poll` does."""

    async def is_current(self) -> bool:
        """Return whether this reader still owns what its last poll returned; if not, the poll must be dropped.

        Raises:
            BrokerUnavailableError: The connection was lost, and what was read may be another reader's by now.
        """

    @property
    def is_done(self) -> bool:
        """Whether everything was returned that was there at `open`; read after an empty poll, only with `once`."""

    def lag(self) -> int | None:
        """Return the number of messages that are not read yet; None: unknown."""

    async def close(self) -> None:
        """Disconnect; never fails."""


class SelectiveReader(MessageReader, Protocol):
    """A reader that may keep messages open over many polls, and acknowledge them in any order.

    Where the broker lets only so many be open at a time, it may have their number as `window`, which `--check` shows.

    Attributes:
        generation: A number that grows whenever what is open may be another reader's, and is read again.
        is_full: So many messages are open that the broker sends no more.
    """

    generation: int

    @property
    def is_full(self) -> bool:
        """Whether so many messages are open that the broker sends no more."""

    def was_settled(self, message: BrokerMessage) -> bool:
        """Return whether a message was settled before a restart although it was returned again.

        Only where the broker keeps no mark of each message that is done.
        """

    async def settle(self, messages: Sequence[BrokerMessage]) -> None:
        """Note that all is decided of the logs of these messages, up to them; raises as `poll` does.

        It was applied, became a dead letter, or is newer than what its stream has. At most one operation of each stream
        has messages that were not settled before it.
        """

    async def acknowledge_some(self, messages: Sequence[BrokerMessage]) -> None:
        """Mark messages of any polls as done; raises as `poll` does."""


class MarksEach:
    """Of a reader whose messages are marked as done one by one, or are all read and decided again."""

    def was_settled(self, message: BrokerMessage) -> bool:
        """Return False: what is done is not returned again, or is decided as before."""
        return False

    async def settle(self, messages: Sequence[BrokerMessage]) -> None:
        """Do nothing."""


class MessageWriter(Protocol):
    """Writes messages to one topic, stream, queue or file, in the order in which they are given."""

    async def open(self) -> None:
        """Connect; raises as `MessageReader.open` does."""

    async def write(self, messages: Sequence[OutMessage]) -> Sequence[Undeliverable]:
        """Write the messages, and return once the broker has confirmed all of them.

        Returns:
            Those that can never be written, because of what they are or where they belong. All others were written.

        Raises:
            BrokerUnavailableError: Some messages may not have been written; the same call may be repeated.
        """

    async def close(self) -> None:
        """Disconnect; never fails."""
