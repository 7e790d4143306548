"""`HeaderCache` reads header lines as httptools does, or leaves them to it; cached results change nothing."""

from __future__ import annotations

import random

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.addons.fast_path.header_cache import HeaderCache
from stepwell.addons.fast_path.hot_step_routes import parse_headers
from stepwell.requests.hot_routes import RequestHeaders
from stepwell.requests.request_ids import request_id_of

MAX_BODY = 1_000_000
FREQUENT = 64  # after so many requests with the same names in the same order there is a layout for them
PLAIN = [
    b"Host: x", b"host:x:8000", b"Content-Type: application/json", b"content-type: application/msgpack", b"Accept: */*",
    b"ACCEPT:\t application/msgpack", b"Connection: Keep-Alive", b"Idempotency-Key: k", b"Authorization: Bearer k",
    b"Origin: http://x", b"Inference-Header-Content-Length: 7",
]  # fmt: skip
OTHERS = [
    b"X-Request-Id: 1", b"x-forwarded-for: 10.0.0.1, 10.0.0.2", b"User-Agent: x/1 (y; z)", b"Cookie: a=b; c=\xe9",
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", b"X:", b"Hostx: y", b"X-Host: y",
    b"Accept-Encoding: gzip, deflate", b"!#$%&'*+-.^_`|~9: v", b"Sec-Fetch-Mode: cors", b"Content-Language:  de ",
    b"X-Transfer-Encoding: chunked", b"Connections: close", b"x-request-id:  abc-1 \t", b"X-Request-Id: a b",
    b"X-REQUEST-ID:", b"X-Request-Id: " + b"x" * 129, b"Traceparent: 00-0-0-0", b"X-Request-Id: \xe9",
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
    """Return header lines as the protocol cuts them: from the end of the request line to the first empty line."""
    text = b"".join([b"\r\n", *(line + b"\r\n" for line in lines), b"\r\n"])
    return text[: text.find(b"\r\n\r\n") + 4]


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

    def check(self, fields: RequestHeaders, length: int, request_id: bytes) -> None:
        """Compare with the fields parsed from the same text."""
        names = {name for name, _ in self.headers}
        assert self.is_sound
        assert self.is_complete
        assert self.keeps_alive
        assert names.isdisjoint({b"transfer-encoding", b"expect", b"upgrade", b"proxy-connection"})
        assert [int(value) for name, value in self.headers if name == b"content-length"] == [length]
        assert request_id_of(self.headers) == request_id
        assert parse_headers(header for header in self.headers if header[0] != b"content-length") == fields


def cache_after(*texts: bytes) -> HeaderCache:
    """Return a cache that has a layout for each of these header lines."""
    cache = HeaderCache(MAX_BODY)
    for text in texts:
        for _ in range(FREQUENT):
            cache.read(text)
    return cache


def check(text: bytes, *before: bytes) -> bool:
    """Check the fields parsed from header lines; return whether the cache parsed them.

    Args:
        text: The lines.
        before: Frequent lines before them. The result must not depend on them, nor on how often `text` was read.
    """
    fresh = HeaderCache(MAX_BODY).read(text)
    used = cache_after(*before)
    assert [used.read(text), used.read(text), cache_after(text).read(text)] == [fresh] * 3
    if fresh is None:
        return False
    _Parsed(text).check(*fresh)
    return True


def name_of(line: bytes) -> bytes:
    return line.partition(b":")[0].lower()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(OTHERS)), st.lists(st.sampled_from(PLAIN), unique_by=name_of), LENGTHS, st.randoms())
def test_plain_lines_are_parsed_as_by_httptools(
    others: list[bytes], plain: list[bytes], length: bytes, order: random.Random
) -> None:
    lines = [*others, *plain, length]
    order.shuffle(lines)

    assert check(block(lines))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*PLAIN, *OTHERS, *ODD])), LENGTHS, st.integers(0, 20))
def test_odd_lines_are_parsed_as_by_httptools_or_left_to_it(lines: list[bytes], length: bytes, place: int) -> None:
    plain = block([*(line for line in lines if line not in ODD), length])
    lines.insert(place % (len(lines) + 1), length)

    check(block(lines), plain)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*PLAIN, *OTHERS]), min_size=1), LENGTHS, st.lists(st.tuples(st.integers(0), PIECES)))
def test_arbitrary_bytes_are_parsed_as_by_httptools_or_left_to_it(
    lines: list[bytes], length: bytes, pieces: list[tuple[int, bytes]]
) -> None:
    before = text = block([*lines, length])
    for at, piece in pieces:
        place = 2 + at % (len(text) - 5)
        text = text[:place] + piece + text[place:]

    check(text[: text.find(b"\r\n\r\n") + 4], before)


def test_an_odd_line_among_plain_lines_is_left_to_httptools() -> None:
    """Except for a header that may appear once."""
    lines = [b"Content-Type: application/json", b"X-Request-Id: 1"]

    assert [odd for odd in ODD if check(block([*lines, odd, b"Content-Length: 5"]))] == [b"Host: y"]


def test_an_odd_value_or_line_in_a_known_layout_is_left_to_httptools() -> None:
    lines = [b"X-Id: x", b"Host: x", b"Connection: keep-alive", b"Idempotency-Key: x", b"Content-Length: 5",
             b"Inference-Header-Content-Length: 5"]  # fmt: skip
    values = [b"y\n", b"y\r", b"y\x00", b"\x7f", b"y\r\n z", b"y\r\nHost: z", b"y\r\n\r\n"]
    odd = [
        *((name + b": x", name + b": " + value) for name in (b"Host", b"X-Id") for value in values),
        (b"Connection: keep-alive", b"Connection: close"),
        (b"Connection: keep-alive", b"Connection: keep-alive, x"),
        (b"Host: x", b"Host : x"),
        (b"X-Id: x", b"Transfer-Encoding: chunked"),
        (b"Content-Length: 5", b"Content-Length: 5, 5"),
        (b"Content-Length: 5", b"Content-Length: +5"),
        (b"Content-Length: 5", b"Content-Length: " + b"9" * 5000),
        (b"Content-Length: 5", b"Content-Length:"),
        (b"Idempotency-Key: x", b"Idempotency-Key: "),
        (b"Inference-Header-Content-Length: 5", b"Inference-Header-Content-Length: x"),
    ]

    assert check(block(lines), block(lines))
    for line, other in odd:
        assert not check(block([other if original == line else original for original in lines]), block(lines)), other


def test_names_in_capitals_or_another_order_are_parsed_to_the_same_fields() -> None:
    lines = [b"Host: x", b"X-Id: x", b"Content-Length: 5", b"Authorization: Bearer k"]
    cache = cache_after(block(lines))
    others = [[line.upper() for line in lines[:3]] + lines[3:], lines[::-1], [*lines[1:], lines[0]]]
    found = [cache.read(block(other)) for other in [lines, *others] * (2 * FREQUENT)]

    assert len({id(one[0]) for one in found if one is not None}) == 2  # one with Host: X
    assert None not in found
    assert len(cache._layouts) == 4


def test_a_request_line_longer_than_the_cached_one_is_left_to_httptools() -> None:
    """Only its beginning equals the cached request line."""
    text = block([b"Content-Length: 5"])

    assert [cache.read(b"0" + text) for cache in (HeaderCache(MAX_BODY), cache_after(text))] == [None, None]


def test_a_body_above_the_limit_is_left_to_the_declared_route() -> None:
    longest, longer = (block([b"Content-Length: %d" % length]) for length in (MAX_BODY, MAX_BODY + 1))

    for cache in (HeaderCache(MAX_BODY), cache_after(longest)):
        assert cache.read(longest) is not None
        assert cache.read(longer) is None


def test_more_than_64_header_lines_are_left_to_httptools() -> None:
    lines = [b"X-%d: x" % n for n in range(63)]

    assert check(block([*lines, b"Content-Length: 5"]))
    assert not check(block([*lines, b"X: x", b"Content-Length: 5"]))


def test_header_lines_of_more_than_8_kib_are_left_to_the_declared_route() -> None:
    lines = [block([b"X-Id: " + b"x" * n, b"Content-Length: 0"]) for n in (1, 8000, 8192)]

    for cache in (HeaderCache(MAX_BODY), cache_after(lines[0])):
        assert [cache.match(text, 0) is not None for text in lines] == [True, True, False]


def test_equal_fields_with_other_lengths_and_lines_are_one_object() -> None:
    """A stream's cached handler is valid as long as its fields are this object."""
    cache = HeaderCache(MAX_BODY)
    found = [cache.read(block([b"Host: x", b"X-Request-Id: %d" % n, b"Content-Length: %d" % n])) for n in range(200)]

    assert len({id(one[0]) for one in found if one is not None}) == 1
    assert None not in found


def test_the_header_cache_is_bounded() -> None:
    """With one-time names, values and body lengths."""
    cache = HeaderCache(MAX_BODY)
    for n in range(5000):
        text = block([b"Host: x%d" % n, b"Y-Id: z", b"Content-Length: %d" % n])
        assert cache.match(text + bytes(n), 0) is not None
    [layout] = cache._layouts
    for n in range(20):
        for _ in range(FREQUENT):
            cache.read(block([b"Y-%d: z" % n, b"Content-Length: 0"]))
    for n in range(200):
        cache.read(block([b"Z-%d: z" % n, b"Content-Length: 0"]))

    assert [len(layout.cache), len(cache._interned), len(cache._layouts), len(cache._candidates)] == [4096, 4096, 8, 64]
    assert max(cache.recent) < 4096


def test_a_request_that_is_not_complete_or_not_alone_is_not_cached_by_length() -> None:
    text = block([b"Host: x", b"Content-Length: 5"])
    for body in (b"", b"1234", b"123456"):
        cache = HeaderCache(MAX_BODY)

        assert [cache.match(text + body, 0) for _ in range(100)] == [None] * 100
        assert cache.recent == {}


def test_repeated_lines_are_cached_by_length_among_lines_that_are_received_once() -> None:
    """Of equal length, one request in ten: the repeated lines may be replaced, but not for long."""
    cache = HeaderCache(MAX_BODY)
    constant = block([b"X-Id: 00000", b"Content-Length: 0"])
    for n in range(10_000):
        cache.match(constant if n % 10 else block([b"X-Id: %05d" % n, b"Content-Length: 0"]), 0)
        if n > 200 and cache.recent[len(constant)].text == constant:
            return
    pytest.fail("The repeated lines were never cached.")


def test_the_id_of_a_request_is_parsed_and_not_cached() -> None:
    cache = HeaderCache(MAX_BODY)
    texts = [block([b"Host: x", b"X-Request-Id: id-%d" % n, b"Content-Length: 0"]) for n in range(200)]
    found = [cache.read(text) for text in texts]
    [layout] = cache._layouts

    assert [one and one[2] for one in found] == [b"id-%d" % n for n in range(200)]
    assert (len(layout.cache), len(cache._interned)) == (1, 1)


def test_per_request_headers_are_not_cached() -> None:
    text = block([b"Idempotency-Key: k", b"Content-Length: 0"])
    cache = cache_after(text)
    found = [cache.read(text) for _ in range(3)]

    assert None not in found
    assert [*cache._layouts[0].cache, *cache._interned] == []
