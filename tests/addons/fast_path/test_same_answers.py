"""The fast path and the declared routes give the same responses, byte for byte, to any request."""

from __future__ import annotations

import gzip
import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepwell.engine.stepping.pipeline import BatchedVersion
from tests.addons.fast_path.both_paths import LAST, BothPaths, chunked, request, split, statuses
from tests.addons.fast_path.conftest import MAX_BODY

STEP, STEPS = "/v1/models/fold/streams/s/step", "/v1/models/fold/streams/s/steps"
BULK, BULK_STEPS = "/v1/models/fold/step", "/v1/models/fold/steps"
RUN = "/v1/models/fold/run"
LSTM = "/v1/models/lstm/streams/s/step"
GOOD = b'{"inputs": {"x": [5]}}'
PACKED = msgspec.msgpack.encode({"inputs": {"x": {"d": "int64", "s": [1], "b": b"\5" + b"\0" * 7}}})
INFER = "/v2/models/fold/infer"
COLUMNS = b'{"streams": ["a", "b:c"], "inputs": {"x": [[1], [2]]}}'


def infer(x: Any = 5, path: str = INFER, *headers: str, **parameters: Any) -> bytes:
    """A request of the Open Inference Protocol; without parameters the start of a sequence."""
    one = {"name": "x", "shape": [1, 1], "datatype": "INT64", "data": [x]}
    given = parameters or {"sequence_id": "oip", "sequence_start": True}
    return request(json.dumps({"id": "r", "inputs": [one], "parameters": given}).encode(), path, *headers)


def raw_infer(
    tail: bytes = b"\5" + b"\0" * 7, size: int = 8, length: str = "", *headers: str, **parameters: Any
) -> bytes:
    """The same request with raw bytes after its document."""
    one = {"name": "x", "shape": [1, 1], "datatype": "INT64", "parameters": {"binary_data_size": size}}
    given = {"sequence_id": 42, "sequence_start": True, "binary_data_output": True, **parameters}
    head = json.dumps({"inputs": [one], "parameters": given}).encode()
    return request(head + tail, INFER, f"Inference-Header-Content-Length: {length or len(head)}", *headers)


RECORDED: dict[str, bytes] = {
    "a step": request(GOOD),
    "a step with an id": request(GOOD, STEP, "X-Request-Id: one-7"),
    "a step with a trace": request(GOOD, STEP, "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    "a refusal with an id": request(b"{", STEP, "X-Request-Id: one-8"),
    "an unknown route with an id": request(GOOD, "/v1/none", "X-Request-Id: one-9"),
    "infer with an id": infer(5, INFER, "X-Request-Id: i", sequence_id="id", sequence_start=True),
    "no content with an id": request(b"", "/v1/models/fold/streams/gone", "X-Request-Id: d", method="DELETE"),
    "a head too long with an id": request(GOOD, STEP, "X-Request-Id: l", "X: " + "x" * 17_000),
    "a step by seq": request(b'{"inputs": [7], "seq": 1}', "/v1/models/fold/streams/by-seq/step"),
    "the same again": request(b'{"inputs": [7], "seq": 1}', "/v1/models/fold/streams/by-seq/step"),
    "a gap": request(b'{"inputs": [7], "seq": 9}', "/v1/models/fold/streams/by-seq/step"),
    "another at that place": request(b'{"inputs": [8], "seq": 1}', "/v1/models/fold/streams/by-seq/step"),
    "never create": request(b'{"inputs": [8], "create": "never"}', "/v1/models/fold/streams/no/step"),
    "floats": request(b'{"inputs": {"x": [0.1, -2.5e-3, 1e20, 3]}}', LSTM),
    "a float too large": request(b'{"inputs": {"x": [0.1, 1e39, 0, 3]}}', LSTM),
    "a float without end": request(b'{"inputs": {"x": [0.1, 1e999, 0, 3]}}', LSTM),
    "two inputs": request(b'{"inputs": {"a": [1, 2], "b": 3}}', "/v1/models/two_inputs/streams/s/step"),
    "one of two inputs": request(b'{"inputs": {"a": [1, 2]}}', "/v1/models/two_inputs/streams/s/step"),
    "a state that is not finite": request(b'{"inputs": [3]}', "/v1/models/nan_at_3/streams/s/step"),
    "a chunk": request(b'{"inputs": [[1], [2]], "return": "all"}', STEPS),
    "the last of a chunk": request(b'{"inputs": [[1], [2]], "return": "last"}', STEPS),
    "priming": request(b'{"inputs": [[1], [2]], "return": "none"}', STEPS),
    "a chunk of none": request(b'{"inputs": []}', STEPS),
    "a chunk too long": request(msgspec.json.encode({"inputs": [[1]] * 65}), STEPS),
    "columns": request(COLUMNS, BULK),
    "columns of chunks": request(b'{"streams": ["a", "b"], "inputs": [[[1], [2]], [[3], [4]]]}', BULK_STEPS),
    "columns with a bad row": request(b'{"streams": ["a", "!"], "inputs": [[1], [2]], "seq": [9, 1]}', BULK),
    "columns with one stream twice": request(b'{"streams": ["a", "a"], "inputs": [[1], [2]]}', BULK),
    "columns in msgpack": request(msgspec.msgpack.encode({"streams": ["a"], "inputs": [[1]]}), BULK,
                                  "content-type: application/msgpack"),
    "a run": request(b'{"inputs": [5], "state": null}', RUN),
    "columns of runs": request(b'{"inputs": [[5], [6]], "state": [null, "!"]}', RUN),
    "a run in msgpack": request(msgspec.msgpack.encode({"inputs": [5], "state": None}), RUN,
                                "content-type: application/msgpack"),
    "a run of a version": request(b'{"inputs": [5], "state": null}', RUN + "?version=1"),
    "a run of an unknown version": request(b'{"inputs": [5], "state": null}', RUN + "?version=2"),
    "a run without a state": request(b'{"inputs": [5]}', RUN),
    "a run of a bad state": request(b'{"inputs": [5], "state": "!"}', RUN),
    "a run of no text": request(b'{"inputs": [5], "state": 5}', RUN),
    "a run with a seq": request(b'{"inputs": [5], "state": null, "seq": 1}', RUN),
    "a run with a state twice": request(b'{"inputs": [5], "state": null, "state": null}', RUN),
    "a run with a key": request(b'{"inputs": [5], "state": null}', RUN, "Idempotency-Key: one"),
    "msgpack": request(PACKED, STEP, "Content-Type: application/msgpack"),
    "msgpack for JSON": request(PACKED, STEP, "Content-Type: application/msgpack", "Accept: application/json"),
    "JSON for msgpack": request(GOOD, STEP, "Accept: text/html, application/x-msgpack;q=1"),
    "msgpack told as JSON": request(PACKED),
    "a refusal in msgpack": request(b"\xc1", STEP, "Content-Type: application/msgpack"),
    "no JSON": request(b"{"),
    "an empty body": request(b""),
    "a key twice": request(b'{"inputs": [1], "inputs": [2]}'),
    "an unknown key": request(b'{"inputs": [1], "nothing": 2}'),
    "a float for an integer": request(b'{"inputs": [1.5]}'),
    "text for a number": request(b'{"inputs": ["1"]}'),
    "a wrong shape": request(b'{"inputs": [1, 2]}'),
    "an integer too large": request(b'{"inputs": [9223372036854775808]}'),
    "a lone surrogate": request(b'{"inputs": [1], "after": "\\ud800"}'),
    "deep nesting": request(b'{"inputs": ' + b"[" * 9999 + b"]" * 9999 + b"}"),
    "an unknown model": request(GOOD, "/v1/models/none/streams/s/step"),
    "no name of a model": request(GOOD, "/v1/models/-/streams/s/step"),
    "no id of a stream": request(GOOD, "/v1/models/fold/streams/a%20b/step"),
    "a dot as stream": request(GOOD, "/v1/models/fold/streams/./step"),
    "two dots as stream": request(GOOD, "/v1/models/fold/streams/../step"),
    "an escaped letter": request(GOOD, "/v1/models/fold/streams/%73/step"),
    "an escaped slash": request(GOOD, "/v1/models/fold/streams/a%2Fb/step"),
    "an escaped slash before a stream": request(GOOD, "/v1/models/fold/streams%2Fs/step"),
    "an id too long": request(GOOD, f"/v1/models/fold/streams/{'a' * 129}/step"),
    "a slash at the end": request(GOOD, STEP + "/"),
    "a fragment": request(GOOD, STEP + "#x"),
    "the absolute form": request(GOOD, "http://x" + STEP),
    "a version": request(GOOD, STEP + "?version=1"),
    "an unknown version": request(GOOD, STEP + "?version=2"),
    "no version": request(GOOD, STEP + "?version=x"),
    "version zero": request(GOOD, STEP + "?version=0"),
    "a version twice": request(GOOD, STEP + "?version=1&version=2"),
    "another query": request(GOOD, STEP + "?x=1"),
    "GET": request(b"", STEP, method="GET", length=None),
    "HEAD": request(b"", STEP, method="HEAD", length=None),
    "OPTIONS": request(b"", STEP, method="OPTIONS", length=None),
    "PUT": request(GOOD, method="PUT"),
    "HTTP/1.0": request(GOOD, version="1.0"),
    "HTTP/1.0, kept": request(GOOD, STEP, "Connection: keep-alive", version="1.0"),
    "no length": request(b"", length=None),
    "a length in hexadecimal": request(GOOD, length="0x16"),
    "a huge length": request(b"", length="99999999999999999999"),
    "two lengths": request(GOOD, STEP, "content-length: 22"),
    "a length in another header": request(GOOD, STEP, "x: Content-Length: 3", "x-content-length: 4"),
    "a length and chunks": request(GOOD, STEP, "transfer-encoding: chunked"),
    "a body too large": request(b" " * (MAX_BODY + 1)),
    "the largest body": request(GOOD + b" " * (MAX_BODY - len(GOOD))),
    "chunks": chunked(GOOD),
    "chunks too large": chunked(b" " * (MAX_BODY + 1), size=10_000),
    "a trailer": chunked(GOOD)[:-2] + b"accept: application/msgpack\r\n\r\n",
    "a key": request(GOOD, "/v1/models/fold/streams/keyed/step", "Idempotency-Key: one"),
    "the key again": request(GOOD, "/v1/models/fold/streams/keyed/step", "idempotency-key: one"),
    "the key for another": request(b'{"inputs": [6]}', "/v1/models/fold/streams/keyed/step", "idempotency-key: one"),
    "an empty key": request(GOOD, STEP, "Idempotency-Key: "),
    "a long key": request(GOOD, STEP, f"Idempotency-Key: {'k' * 256}"),
    "two keys": request(GOOD, STEP, "Idempotency-Key: a", "Idempotency-Key: b"),
    "a key that is not ASCII": request(GOOD, STEP, "Idempotency-Key: \xe9"),
    "two types": request(GOOD, STEP, "content-type: application/json", "content-type: application/msgpack"),
    "its own origin": request(GOOD, STEP, "Origin: http://x"),
    "another origin": request(GOOD, STEP, "Origin: http://evil"),
    "a browser's page of another name": request(GOOD, STEP, "Sec-Fetch-Site: same-origin"),
    "a browser's page of its own origin": request(GOOD, STEP, "Sec-Fetch-Site: same-origin", "Origin: http://x"),
    "close": request(GOOD, STEP, "Connection: close"),
    "an upgrade": request(GOOD, STEP, "Connection: upgrade, close", "Upgrade: h2c"),
    "expecting to go on": request(GOOD, STEP, "Expect: 100-continue"),
    "expecting something else": request(GOOD, STEP, "Expect: nothing"),
    "a head too long": request(GOOD, STEP, f"x: {'y' * 17000}"),
    "bare line ends": request(GOOD).replace(b"\r\n", b"\n"),
    "empty lines before": b"\r\n\r\n" + request(GOOD),
    "a space before": b" " + request(GOOD),
    "no HTTP": b"hello\r\n\r\n",
    "infer, a start": infer(),
    "infer, going on": infer(6, sequence_id="oip"),
    "infer, an end": infer(7, sequence_id="oip", sequence_end=True),
    "infer, after the end": infer(8, sequence_id="oip"),
    "infer, start and end": infer(8, sequence_id="oip", sequence_start=True, sequence_end=True),
    "infer, numbered": infer(8, sequence_id="oip2", sequence_start=True, step=1),
    "infer, numbered again": infer(8, sequence_id="oip2", sequence_start=True, step=1),
    "infer, a gap": infer(8, sequence_id="oip2", step=7),
    "infer, without a sequence": infer(8, step=1),
    "infer, no id of a stream": infer(8, sequence_id="a b"),
    "infer, raw": raw_infer(),
    "infer, raw in, JSON out": raw_infer(binary_data_output=False),
    "infer, raw with a key": raw_infer(b"\5" + b"\0" * 7, 8, "", "Idempotency-Key: k"),
    "infer, the key again": raw_infer(b"\5" + b"\0" * 7, 8, "", "Idempotency-Key: k"),
    "infer, the key for another": raw_infer(b"\6" + b"\0" * 7, 8, "", "Idempotency-Key: k"),
    "infer, too few bytes": raw_infer(b"\5"),
    "infer, too many bytes": raw_infer(b"\5" * 9),
    "infer, a wrong size": raw_infer(b"\5" * 4, 4),
    "infer, no length": raw_infer(length="x"),
    "infer, a length too large": raw_infer(length="99999"),
    "infer, two lengths": raw_infer(b"", 8, "7", "inference-header-content-length: 7"),
    "infer, a sequence and no document": raw_infer(length="0"),
    "infer, no document": request(b"\0" * 16, "/v2/models/stateless/infer", "Inference-Header-Content-Length: 0"),
    "infer, without state": request(
        b'{"inputs":[{"name":"x","shape":[3,2],"datatype":"FP32","data":[1,2,3,4,5,6]}]}', "/v2/models/stateless/infer"
    ),
    "infer, a version": infer(5, "/v2/models/fold/versions/1/infer"),
    "infer, an unknown version": infer(5, "/v2/models/fold/versions/2/infer"),
    "infer, version zero": infer(5, "/v2/models/fold/versions/0/infer"),
    "infer, another query": infer(5, INFER + "?x=1"),
    "infer, an unknown model": infer(5, "/v2/models/none/infer"),
    "infer, an escaped letter": infer(5, "/v2/models/f%6Fld/infer"),
    "infer, an escaped slash": infer(5, "/v2/models/fo%2Fld/infer"),
    "infer, a type": infer(5, INFER, "Content-Type: application/msgpack", "Accept: application/msgpack"),
    "compressed": request(gzip.compress(GOOD), STEP, "Content-Encoding: gzip"),
    "columns, compressed": request(gzip.compress(COLUMNS), BULK, "content-encoding: br"),
    "compressed, told twice": request(GOOD, STEP, "Content-Encoding: identity", "Content-Encoding: gzip"),
    "not compressed": request(GOOD, STEP, "Content-Encoding: identity"),
    "infer, compressed otherwise": request(gzip.compress(b"{}"), INFER, "Content-Encoding: br"),
    "infer, compressed": request(gzip.compress(b"{}"), INFER, "Content-Encoding: gzip"),
    "infer, another origin": infer(5, INFER, "Origin: http://evil"),
    "infer, no JSON": request(b"{", INFER),
    "infer, an empty body": request(b"", INFER),
    "infer, a lone surrogate": request(b'{"inputs": [], "id": "\\ud800"}', INFER),
    "infer, deep nesting": request(b'{"inputs": ' + b"[" * 9999 + b"]" * 9999 + b"}", INFER),
    "infer, a float for an integer": infer(1.5),
    "infer, GET": request(b"", INFER, method="GET", length=None),
    "infer, chunks": chunked(b"{}", INFER),
    "infer, a body too large": request(b" " * (MAX_BODY + 1), INFER),
    "infer, close": infer(5, INFER, "Connection: close"),
    "infer, a head too long": infer(5, INFER, f"x: {'y' * 17000}"),
}  # fmt: skip


def test_a_recorded_request_gets_the_same_response(both_paths: BothPaths) -> None:
    for what, text in RECORDED.items():
        assert both_paths.answer(text, LAST), what


def test_a_key_gets_the_same_response(keyed: BothPaths) -> None:
    paths = (STEP, BULK, "/v1/models/none/streams/s/step", INFER, "/v2/models/none/infer")
    for keys in (
        *(["Bearer full"], ["bearer  full "], ["Bearer other"], ["Bearer reader"], ["Bearer wrong"], ["Bearer"]),
        *(["Basic full"], [""], [], ["Bearer full", "Bearer x"]),
    ):
        headers = [f"Authorization: {key}" for key in keys]
        answer = keyed.answer(*(request(GOOD, path, *headers) for path in paths), LAST)

        assert len(statuses(answer)) == len(paths) + 1, keys


def test_requests_can_be_split_anywhere(both_paths: BothPaths, stream: str) -> None:
    path = f"/v1/models/fold/streams/{stream}/step"
    for text in (request(GOOD, path), chunked(GOOD, path)):
        for place in range(1, len(text)):
            assert statuses(both_paths.answer(text[:place], text[place:], LAST)) == [200, 404]
    pipeline = request(GOOD, path) * 2 + LAST
    byte_by_byte = both_paths.answer(*(pipeline[i : i + 1] for i in range(len(pipeline))))

    assert statuses(byte_by_byte) == [200, 200, 404]


def test_an_internal_error_gets_the_same_response(both_paths: BothPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken")

    for method in ("submit", "submit_single", "submit_bulk"):
        monkeypatch.setattr(BatchedVersion, method, broken)

    answer = both_paths.answer(request(GOOD) + request(COLUMNS, BULK) + infer() + LAST)

    assert statuses(answer) == [500, 500, 500, 404]
    assert answer.count(b'"applied":"unknown"') == 2  # and a sentence in the errors of the Open Inference Protocol


# ------------------------------------------------------------------- generated

HEADERS = st.lists(
    st.sampled_from([
        "Content-Type: application/json", "content-type: application/msgpack", "CONTENT-TYPE: text/plain",
        "Accept: */*", "accept: application/msgpack", "Accept: application/json;q=0.1, */*",
        "Idempotency-Key: k1", "idempotency-key: k2", "Idempotency-Key: ", "Origin: http://x", "Origin: null",
        "User-Agent: x/1", "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "Connection: keep-alive", "connection: Keep-Alive, x", "Cookie: a=b", "X:", "Authorization: Bearer x",
    ]),
    max_size=4,
)  # fmt: skip
PATHS = st.one_of(
    st.builds(
        "/v1/models/{}/streams/{}/{}{}".format,
        st.sampled_from(["fold", "lstm", "two_inputs", "no", "f%6Fld", ""]),
        st.sampled_from(["a", "b", "c:d@e-f._", ".", "a%2fb", "a b", "\xe9"]),
        st.sampled_from(["step", "steps", "step/", "Step", "peek"]),
        st.sampled_from(["", "", "", "?version=1", "?version=7", "?version=01", "?version=", "?a&version=1"]),
    ),
    st.builds("/v1/models/{}/{}".format, st.sampled_from(["fold", "lstm", "no"]), st.sampled_from(["step", "steps"])),
)
NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(0, 9),
    st.floats(allow_nan=False),
    st.booleans(),
    st.none(),
    st.text(max_size=3),
)
TENSORS = st.one_of(
    st.lists(st.integers(0, 9), min_size=1, max_size=1),
    st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4),
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=1), max_size=3),
    st.lists(NUMBERS, max_size=5),
    NUMBERS,
)
DOCUMENTS = st.fixed_dictionaries(
    {"inputs": st.one_of(TENSORS, st.fixed_dictionaries({"x": TENSORS}))},
    optional={
        "seq": st.one_of(st.integers(-1, 4), st.lists(st.integers(1, 3), max_size=3)),
        "after": st.sampled_from(["A" * 22, "x", "é" * 22]),
        "create": st.sampled_from(["auto", "never", "must", "x"]),
        "return": st.sampled_from(["all", "last", "none", "x"]),
        "streams": st.lists(st.sampled_from(["a", "b", "c:d", "!"]), max_size=3),
        "more": st.none(),
    },
)
BODIES = st.one_of(
    DOCUMENTS.map(json.dumps).map(str.encode),
    DOCUMENTS.map(lambda document: json.dumps(document, indent=1, ensure_ascii=False).encode()),
    st.fixed_dictionaries({"inputs": st.lists(st.integers(0, 9), min_size=1, max_size=1)}).map(msgspec.msgpack.encode),
    st.sampled_from(
        [GOOD, GOOD, GOOD, COLUMNS, PACKED, b"", b"null", b"[]", b'{"inputs":', b"\xff", b'{"inputs": NaN}']
    ),
)
SOUND = st.builds(
    lambda stream, more, x: request(
        json.dumps({"inputs": [x], **more}).encode(), f"/v1/models/fold/streams/{stream}/step", "User-Agent: x"
    ),
    st.sampled_from("abc"),
    st.one_of(st.just({}), st.fixed_dictionaries({"seq": st.integers(1, 5)})),
    st.integers(0, 1),
)
PARAMETERS = st.fixed_dictionaries(
    {"sequence_id": st.sampled_from([1, "a", "1", 0, "", "!", 2**70])},
    optional={
        "sequence_start": st.sampled_from([True, True, False, 1]),
        "sequence_end": st.booleans(),
        "step": st.integers(0, 3),
        "binary_data_output": st.booleans(),
        "idempotency_key": st.sampled_from(["k", "l", ""]),
        "triton_x": st.none(),
    },
)
INFERS = st.one_of(
    st.builds(lambda x, parameters: infer(x, **parameters), st.one_of(st.integers(0, 2), NUMBERS), PARAMETERS),
    st.builds(
        lambda tail, size, length, parameters: raw_infer(tail, size, length, **parameters),
        st.sampled_from([b"\0" * 8, b"\1" + b"\0" * 7, b"", b"\0" * 9]),
        st.sampled_from([8, 8, 8, 0, 9, -1]),
        st.sampled_from(["", "", "", "0", "5", "x", "9999"]),
        PARAMETERS,
    ),
    st.builds(lambda body, headers: request(body, INFER, *headers), BODIES, HEADERS),
)
REQUESTS = st.one_of(
    INFERS,
    SOUND,
    SOUND,
    SOUND,
    st.builds(lambda body, path, headers: request(body, path, *headers), BODIES, PATHS, HEADERS),
    st.builds(lambda body, path, headers: request(body, path, *headers), BODIES, PATHS, HEADERS),
    st.builds(lambda body, path, headers: chunked(body, path, *headers), BODIES, PATHS, HEADERS),
    st.builds(lambda path, method: request(b"", path, method=method), PATHS, st.sampled_from(["GET", "PUT", "HEAD"])),
    st.sampled_from([
        request(b"", "/v1/models/fold/streams/a/reset"),
        request(b"", "/v1/models/fold/streams/a", method="DELETE"),
        request(b"", "/healthz", method="GET", length=None),
    ]),
)  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.lists(REQUESTS, min_size=1, max_size=5), cuts=st.lists(st.integers(0, 2000), max_size=3))
def test_generated_request_sequences_get_the_same_responses(
    both_paths: BothPaths, requests: list[bytes], cuts: list[int]
) -> None:
    """Pipelined on one connection, split anywhere, with hot and other routes mixed, on shared streams."""
    text = b"".join(requests) + LAST

    assert both_paths.answer(*split(text, cuts))
