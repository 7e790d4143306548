"""HTTP/1.1 as RFC 9112 has it: the facts that the suite h1spec of uNetworking checks, and `Host`, on both paths."""

from __future__ import annotations

import contextlib
import select

import pytest

from tests.addons.fast_path.both_paths import LAST, UPGRADE, BothPaths, connected, read_to_end, request, statuses

HOT = "/v1/models/fold/streams/host/step"
GOOD = b'{"inputs": [1]}'


def head(*lines: str, method: str = "GET", path: str = "/healthz", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", *lines, "", ""]).encode("latin-1")


WHOLE = head("Host: localhost")
_LINE, _NAME = WHOLE.index(b"\r\n"), WHOLE.index(b"Host")
_VALUE = WHOLE.index(b"localhost")
CUTS = {
    1,
    4,
    7,
    *(WHOLE.index(b" HTTP"), WHOLE.index(b"HTTP"), WHOLE.index(b"HTTP") + 4),
    *(_LINE, _LINE + 1, _LINE + 2),
    *(_NAME + 3, _NAME + 5, _VALUE, _VALUE + len("localhost")),
    *(len(WHOLE) - 3, len(WHOLE) - 2, len(WHOLE) - 1),
}
"""In and behind the method, the path, the version, the request line, a name, its colon, a value, and the line ends."""


@pytest.mark.parametrize("hot", [False, True], ids=["declared route", "hot route"])
def test_an_incomplete_head_is_not_answered_before_it_is_complete(both_paths: BothPaths, hot: bool) -> None:
    """What another connection sends afterwards is answered first, so the service has read the part by then."""
    whole = WHOLE.replace(b"GET /healthz", b"POST " + HOT.encode()) if hot else WHOLE
    for cut in CUTS:
        at = min(cut, len(whole)) if cut < 8 else len(whole) - (len(WHOLE) - cut)
        for service in (both_paths.lane, both_paths.declared):
            with connected(service) as sock:
                sock.sendall(whole[:at])
                for _ in range(3):
                    assert service.http.get("/healthz").status_code == 200
                assert not select.select([sock], [], [], 0)[0], whole[:at]
                sock.sendall(whole[at:] + LAST)
                first, *_ = statuses(read_to_end(sock))
            assert first == (400 if hot else 200)  # a step without a body is no JSON


OK, BAD = [200], [400]
EXPECTED: dict[str, tuple[bytes, list[int]]] = {
    "no version": (b"GET / \r\n\r\n", BAD),
    "expect": (head("Host: example.com", "Expect: 100-continue"), OK),
    "a request": (head("Host: example.com"), OK),
    "a name in mixed case, a tab, an empty header": (head("hoSt:\texample.com", "empty:"), OK),
    "a name with brackets": (head("Host: example.com", "X-Invalid[]: test"), BAD),
    "no host, a length": (head("Content-Length: 5"), BAD),
    "two hosts": (head("Host: example.com", "Host: example.org"), BAD),
    "a length far below zero": (head("Host: example.com", "Content-Length: -123456789123456789123456789"), BAD),
    "a length below zero": (head("Host: example.com", "Content-Length: -1234"), BAD),
    "a length that is no number": (head("Host: example.com", "Content-Length: abc"), BAD),
    "an empty value": (head("Host: example.com", "X-Empty-Header: "), OK),
    "a control character": (head("Host: example.com", "X-Bad-Control-Char: test\x07"), BAD),
    "version 9.9": (head("Host: example.com", version="9.9"), BAD),
    "text before the request": (b"Extra line" + head("Host: example.com"), BAD),
    "a lone carriage return": (b"GET /healthz HTTP/1.1\r\nHost: example.com\r\n\rSome-Header: Test\r\n\r\n", BAD),
    "a body": (request(GOOD, HOT), OK),
    "a length and chunks": (head("Host: example.com", "Transfer-Encoding: chunked", "Content-Length: 5"), BAD),
}


def test_a_request_is_answered_as_the_standard_demands(both_paths: BothPaths) -> None:
    for what, (data, expected) in EXPECTED.items():
        assert statuses(both_paths.answer(data, LAST))[:1] == expected, what


ROUTES = {
    "a hot route": ("POST", HOT, GOOD),
    "a hot route of the Open Inference Protocol": ("POST", "/v2/models/fold/infer", b"{}"),
    "a declared route": ("POST", "/v1/models/fold/streams/host/peek", GOOD),
    "health": ("GET", "/healthz", b""),
    "metrics": ("GET", "/metrics", b""),
    "no route": ("GET", "/v1/nothing", b""),
}
NO_HOST: tuple[list[str], ...] = ([], ["a", "b"], ["a", "a"], ["a/b"], ["a b"], ["u@a"])


@pytest.mark.parametrize(("method", "path", "body"), ROUTES.values(), ids=ROUTES.keys())
def test_a_request_without_one_valid_host_is_rejected(
    both_paths: BothPaths, method: str, path: str, body: bytes
) -> None:
    for hosts in NO_HOST:
        lines = [f"Host: {host}" for host in hosts]
        data = head(*lines, f"Content-Length: {len(body)}", method=method, path=path) + body
        answer = both_paths.answer(data, LAST)

        assert statuses(answer) == BAD, hosts
        assert b"`Host` header" in answer


def test_a_request_with_a_valid_host_is_accepted(both_paths: BothPaths) -> None:
    for host in ("", "a", "a:8000", "[::1]:8000", "127.0.0.1", "a.b-c_d", "a:"):
        data = head(f"Host: {host}", f"Content-Length: {len(GOOD)}", method="POST", path=HOT) + GOOD

        assert statuses(both_paths.answer(data, LAST))[:1] == OK, host


def test_http_1_0_needs_no_host(both_paths: BothPaths) -> None:
    answers = [both_paths.answer(head(*hosts, version="1.0")) for hosts in ([], ["Host: a"], ["Host: a", "Host: b"])]

    assert [statuses(answer) for answer in answers] == [OK, OK, BAD]


def test_an_upgrade_without_one_host_is_rejected(both_paths: BothPaths) -> None:
    for hosts in (b"", b"Host: a\r\nHost: b\r\n"):
        answer = both_paths.answer(UPGRADE.replace(b"Host: x\r\n", hosts))

        assert statuses(answer) == BAD
        assert b"`Host` header" in answer


def test_only_the_request_without_a_host_is_rejected_of_a_pipeline(both_paths: BothPaths) -> None:
    """What comes behind it is not read any more: the connection is closed."""
    good = request(GOOD, HOT)
    bad = good.replace(b"Host: x\r\n", b"")

    with contextlib.suppress(OSError):
        assert statuses(both_paths.answer(good, good, bad, good)) == [200, 200, 400]
