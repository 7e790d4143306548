"""`HeaderBlockCache` reads header lines as httptools does, or leaves them to it; cached lines change nothing."""

from __future__ import annotations

import random

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.protocols.header_cache import HeaderBlockCache
from service.requests.hot_routes import RequestHeaders, parse_headers

MAX_BODY = 1_000_000
PLAIN = [
    b"Host: x", b"host:x:8000", b"Content-Type: application/json", b"content-type: application/msgpack", b"Accept: */*",
    b"ACCEPT:\t application/msgpack", b"Connection: Keep-Alive", b"Idempotency-Key: k", b"Authorization: Bearer k",
    b"Origin: http://x", b"Inference-Header-Content-Length: 7",
]  # fmt: skip
OTHERS = [
    b"X-Request-Id: 1", b"x-forwarded-for: 10.0.0.1, 10.0.0.2", b"User-Agent: x/1 (y; z)", b"Cookie: a=b; c=\xe9",
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", b"X:", b"Hostx: y", b"X-Host: y",
    b"Accept-Encoding: gzip, deflate", b"!#$%&'*+-.^_`|~9: v", b"Sec-Fetch-Mode: cors", b"Content-Language:  de ",
    b"X-Transfer-Encoding: chunked", b"Connections: close",
]  # fmt: skip
ODD = [
    b"Transfer-Encoding: chunked", b"transfer-encoding : chunked", b"Content-Length: 5", b"Content-Length : 5",
    b"content-length: 5, 5", b"Content-Length: +5", b"Content-Length:", b"Content-Length: 99999999999999999999",
    b"Content-Length: 5 ", b"Content-Length: 005", b"Connection: close", b"connection: keep-alive, x", b"Upgrade: h2c",
    b"Expect: 100-continue", b"Proxy-Connection: close", b" folded", b"\tfolded", b"X: a\n b", b"X: a\nHost: y",
    b"X: a\rHost: y", b"X: a\r", b"X: \x00", b"X: \x7f", b"X : y", b"X", b"", b": y", b"\xe9: y", b"X(y): z",
    b"Host: y", b"Content-Encoding: gzip", b"Sec-Fetch-Site: none", b"Idempotency-Key:", b"Host: \x01", b"Host : y",
    b"Inference-Header-Content-Length: x", b"Transfer-Encoding: identity", b"Connection: x\r\n\tclose",
]  # fmt: skip
LENGTHS = st.sampled_from([b"Content-Length: 5", b"content-length:17", b"CONTENT-LENGTH: 000"])
PIECES = st.binary(max_size=8) | st.sampled_from([b"\r\n", b"\n", b"\r", b":", b" ", b"\r\n ", b"\r\n\r\n"])


def block(lines: list[bytes]) -> bytes:
    return b"".join([b"\r\n", *(line + b"\r\n" for line in lines), b"\r\n"])


class _Parsed:
    """The header fields that httptools parses."""

    def __init__(self, text: bytes) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_complete = False
        self.is_sound = True
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(b"POST / HTTP/1.1" + text)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.is_sound = False
        else:
            self.keeps_alive = parser.should_keep_alive()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.is_complete = True

    def check(self, fields: RequestHeaders, length: int) -> None:
        """Compare with the fields parsed from the same text."""
        names = {name for name, _ in self.headers}
        assert self.is_sound
        assert self.is_complete
        assert self.keeps_alive
        assert names.isdisjoint({b"transfer-encoding", b"expect", b"upgrade", b"proxy-connection"})
        assert [int(value) for name, value in self.headers if name == b"content-length"] == [length]
        assert parse_headers(header for header in self.headers if header[0] != b"content-length") == fields


shared = HeaderBlockCache(MAX_BODY)


def check(text: bytes) -> bool:
    """Check the fields parsed from header lines; return whether the cache parsed them."""
    fresh, first, again = HeaderBlockCache(MAX_BODY).read(text), shared.read(text), shared.read(text)
    assert fresh == first == again
    if fresh is None:
        return False
    _Parsed(text).check(*fresh)
    return True


def name_of(line: bytes) -> bytes:
    return line.partition(b":")[0].lower()


@given(st.lists(st.sampled_from(OTHERS)), st.lists(st.sampled_from(PLAIN), unique_by=name_of), LENGTHS, st.randoms())
def test_plain_lines_are_parsed_as_by_httptools(
    others: list[bytes], plain: list[bytes], length: bytes, order: random.Random
) -> None:
    lines = [*others, *plain, length]
    order.shuffle(lines)

    assert check(block(lines))


@given(st.lists(st.sampled_from([*PLAIN, *OTHERS, *ODD])), LENGTHS, st.integers(0, 20))
def test_odd_lines_are_parsed_as_by_httptools_or_left_to_it(lines: list[bytes], length: bytes, place: int) -> None:
    lines.insert(place % (len(lines) + 1), length)

    check(block(lines))


@given(st.lists(st.sampled_from([*PLAIN, *OTHERS]), min_size=1), LENGTHS, st.lists(st.tuples(st.integers(0), PIECES)))
def test_arbitrary_bytes_are_parsed_as_by_httptools_or_left_to_it(
    lines: list[bytes], length: bytes, pieces: list[tuple[int, bytes]]
) -> None:
    text = block([*lines, length])
    for at, piece in pieces:
        place = 2 + at % (len(text) - 5)
        text = text[:place] + piece + text[place:]
    text = text[: text.find(b"\r\n\r\n", 2) + 4]  # cut at the end of the head, as in the protocol

    check(text)


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_line_among_plain_lines_is_left_to_httptools(odd: bytes) -> None:
    """Exceptions: a length with leading zeros, and a header that may appear once."""
    taken = check(block([b"Content-Type: application/json", b"X-Request-Id: 1", odd, b"Content-Length: 5"]))

    assert taken is (odd == b"Host: y")


def test_a_request_line_longer_than_the_cached_one_is_left_to_httptools() -> None:
    """Only its beginning equals the cached request line."""
    assert shared.read(b"0" + block([b"Content-Length: 5"])) is None


def test_a_body_above_the_limit_is_left_to_the_declared_route() -> None:
    assert shared.read(block([b"Content-Length: %d" % MAX_BODY])) is not None
    assert shared.read(block([b"Content-Length: %d" % (MAX_BODY + 1)])) is None


def test_equal_fields_with_other_lengths_and_lines_are_one_object() -> None:
    """A stream's cached handler is valid as long as its fields are this object."""
    found = [shared.read(block([b"Host: x", b"X-Request-Id: %d" % n, b"Content-Length: %d" % n])) for n in range(100)]

    assert len({id(one[0]) for one in found if one is not None}) == 1
    assert None not in found


def test_the_header_cache_is_bounded() -> None:
    """With one-time names, values and body lengths."""
    heads = HeaderBlockCache(MAX_BODY)
    for n in range(20_000):
        text = block([b"Host: x%d" % n, b"Y-%d: z" % n, b"Content-Length: %d" % n])
        for _ in range(3):
            assert heads.match(text + bytes(n), 0) is not None

    sizes = [len(kept) for kept in (heads._parsed, heads._interned, heads._blocks, heads.by_length)]
    assert sizes[:3] == [16_384, 16_384, 1024]
    assert sizes[3] < 4096


@pytest.mark.parametrize("body", [b"", b"1234", b"123456"], ids=["none yet", "a part", "more behind it"])
def test_a_request_that_did_not_come_alone_and_whole_is_never_likely(body: bytes) -> None:
    heads = HeaderBlockCache(MAX_BODY)
    text = block([b"Host: x", b"Content-Length: 5"])

    assert [heads.match(text + body, 0) for _ in range(4)] == [None] * 4
    assert heads.by_length == {}


def test_what_never_comes_again_pushes_nothing_out() -> None:
    heads = HeaderBlockCache(MAX_BODY)
    constant = block([b"Host: x", b"Content-Length: 0"])
    for _ in range(2):
        heads.match(constant, 0)
    for n in range(5000):
        heads.match(block([b"X-Request-Id: %d" % n, b"Host: x", b"Content-Length: 0"]), 0)

    assert list(heads._blocks) == [constant]


def test_per_request_headers_are_not_cached() -> None:
    heads = HeaderBlockCache(MAX_BODY)
    found = [heads.match(block([b"Idempotency-Key: k", b"Content-Length: 0"]), 0) for _ in range(3)]

    assert None not in found
    assert [*heads._blocks, *heads._parsed, *heads._interned] == []
