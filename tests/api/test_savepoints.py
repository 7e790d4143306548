"""Export and import of all streams of a model over HTTP, as the API contract specifies."""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import redis

from stepwell.addons.savepoints.file import Page, SavepointFormatError, SavepointReader, encode_header, encode_page
from tests.api.running import Service, running_service
from tests.api.test_streams import code_of
from tests.graphs import fold, fold_reference, write_models
from tests.servers import Server, server

STREAMS = "/v1/models/fold/streams"


def export(service: Service, prefix: str, **query: str) -> bytes:
    answer = service.http.get(f"{STREAMS}/export", params={"prefix": prefix, **query})
    assert answer.status_code == 200, answer.text
    return answer.content


def load(service: Service, data: bytes, path: str = STREAMS, **query: str) -> dict[str, Any]:
    answer = service.http.post(f"{path}/import", content=data, params=query)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def pages_of(data: bytes, piece: int = 1 << 20) -> list[Page]:
    reader = SavepointReader()
    pages = [page for at in range(0, len(data), piece) for page in reader.feed(data[at : at + piece])]
    reader.close()
    return pages


def steps(service: Service, prefix: str) -> dict[str, int]:
    answer = service.http.get(STREAMS, params={"prefix": prefix, "limit": "1000"})
    return {one["stream"]: one["step"] for one in answer.json()["streams"]}


def make_streams(service: Service, prefix: str, n: int) -> None:
    for i in range(n):
        service.step("fold", f"{prefix}{i}", [i], seq=1)
        service.step("fold", f"{prefix}{i}", [7], seq=2)


def delete_streams(service: Service, prefix: str) -> None:
    for name in steps(service, prefix):
        assert service.http.delete(service.path("fold", name)).status_code == 204


def test_a_savepoint_has_each_stream_with_the_prefix_once(service: Service, stream: str) -> None:
    make_streams(service, f"{stream}.", 5)
    make_streams(service, f"{stream}-other", 1)
    data = export(service, f"{stream}.")
    for piece in (1, 7, 1 << 20):
        pages = pages_of(data, piece)

        assert sorted(name for page in pages for name, _ in page.streams) == [f"{stream}.{i}" for i in range(5)]
        assert pages[0].header["model"] == "fold"


def test_streams_continue_from_a_savepoint_in_another_store(service: Service, stream: str, tmp_path: Path) -> None:
    make_streams(service, f"{stream}.", 3)
    data = export(service, f"{stream}.")
    before = service.http.get(service.path("fold", f"{stream}.2"), params={"outputs": "true"}).json()

    with (
        server(tmp_path / "redis") as other,
        running_service(other.url, write_models(tmp_path / "models", fold)) as service_2,
    ):
        assert load(service_2, data) == {"loaded": 3, "refused": [], "refused_count": 0}
        after = service_2.http.get(service_2.path("fold", f"{stream}.2"), params={"outputs": "true"}).json()
        stepped = service_2.step("fold", f"{stream}.2", [5], seq=3).json()

    assert [after[key] for key in ("step", "state_id", "outputs", "created_at")] == [
        before[key] for key in ("step", "state_id", "outputs", "created_at")
    ]
    assert stepped["outputs"]["y"][0] == fold_reference([2, 7, 5])[-1]


def test_loading_a_file_twice_changes_nothing(service: Service, stream: str) -> None:
    make_streams(service, f"{stream}.", 3)
    data = export(service, f"{stream}.")
    delete_streams(service, f"{stream}.")
    first, there = load(service, data), export(service, f"{stream}.")

    for overwrite in ("false", "true"):
        assert load(service, data, overwrite=overwrite) == first
        assert dict(pages_of(export(service, f"{stream}."))[0].streams) == dict(pages_of(there)[0].streams)


def test_a_live_stream_is_refused_and_left_alone_or_replaced_on_request(service: Service, stream: str) -> None:
    make_streams(service, f"{stream}.", 3)
    data = export(service, f"{stream}.")
    service.step("fold", f"{stream}.1", [9], seq=3)

    report = load(service, data)

    assert report == {
        "loaded": 2, "refused": [{"stream": f"{stream}.1", "code": "stream_exists"}], "refused_count": 1
    }  # fmt: skip
    assert steps(service, f"{stream}.") == {f"{stream}.0": 2, f"{stream}.1": 3, f"{stream}.2": 2}
    assert load(service, data, overwrite="true")["loaded"] == 3
    assert service.step("fold", f"{stream}.1", [4], seq=3).json()["outputs"]["y"][0] == fold_reference([1, 7, 4])[-1]


def test_a_stream_of_a_model_that_is_not_loaded_is_refused(service: Service, stream: str, tmp_path: Path) -> None:
    make_streams(service, f"{stream}.", 2)
    data = export(service, f"{stream}.")
    delete_streams(service, f"{stream}.")

    report = load(service, data, "/v1/models/lstm/streams")

    assert {one["code"] for one in report["refused"]} == {"model_changed"}
    assert (report["loaded"], report["refused_count"]) == (0, 2)


def test_a_stream_whose_record_cannot_be_read_is_named_and_left_out(
    service: Service, stream: str, shared_redis: Server
) -> None:
    make_streams(service, f"{stream}.", 2)
    with redis.Redis.from_url(shared_redis.url) as client:
        client.set(f"swl:1:{{default/fold/{stream}.0}}", b"broken")

    [page] = pages_of(export(service, f"{stream}."))

    assert page.unreadable == [f"{stream}.0"]
    assert [name for name, _ in page.streams] == [f"{stream}.1"]


def test_streams_beyond_the_quota_are_refused_and_those_that_are_there_are_not(
    service: Service, stream: str, tmp_path: Path
) -> None:
    make_streams(service, f"{stream}.", 4)
    data = export(service, f"{stream}.")
    with (
        server(tmp_path / "redis") as other,
        running_service(other.url, write_models(tmp_path / "models", fold), tenant_max_streams=3) as limited,
    ):
        first, second = load(limited, data), load(limited, data)

    assert first["loaded"] == second["loaded"] == 3
    assert [one["code"] for one in second["refused"]] == ["stream_quota"]


def test_an_export_goes_on_behind_a_page(service: Service, stream: str) -> None:
    make_streams(service, f"{stream}.", 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stepwell.addons.savepoints.records._MAX_PAGE_STREAMS", 2)
        first, *_ = pages_of(export(service, f"{stream}."))
        assert first.cursor is not None
        rest = pages_of(export(service, f"{stream}.", cursor=first.cursor))

    names = {name for page in (first, *rest) for name, _ in page.streams}
    assert names == {f"{stream}.{i}" for i in range(3)}


def frame(kind: bytes, payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "little") + kind + payload


def savepoint_ending_with(page_end: bytes) -> bytes:
    """Return a savepoint without streams whose page ends with some JSON; its checksum is right."""
    hashed = encode_header("fold", "", "now") + frame(b"P", page_end + bytes(16))[:-16]
    return hashed + blake2b(hashed, digest_size=16).digest()


SPOILED: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda data: data[:-20], "ends within a page"),
    (lambda data: data[5:], "does not begin a frame"),
    (lambda data: data[:150] + bytes([data[150] ^ 1]) + data[151:], "checksum|damaged|does not begin"),
    (lambda _: b"", "ends within a page"),
    (lambda _: encode_page(encode_header("m", "", "now"), [("a b", b"")], None, []), "is not a stream id"),
    (lambda _: savepoint_ending_with(b"{}"), "end of a page is damaged"),
    (lambda _: savepoint_ending_with(b'{"streams": 0, "cursor": 5, "unreadable": []}'), "end of a page is damaged"),
    (lambda _: savepoint_ending_with(b"[" * 100_000), "end of a page is damaged"),
    (lambda _: frame(b"H", b"[" * 100_000), "damaged"),
]
"""Cut, without its beginning, a bit flipped, empty, a bad id, no end, a bad cursor, and JSON that is too deep."""


def test_a_damaged_savepoint_is_rejected(service: Service, stream: str) -> None:
    make_streams(service, f"{stream}.", 2)
    data = export(service, f"{stream}.")
    for spoil, message in SPOILED:
        answer = service.http.post(f"{STREAMS}/import", content=spoil(data))

        assert (answer.status_code, code_of(answer)) == (400, "bad_request")
        assert re.search(message, answer.json()["detail"])


def test_a_flipped_bit_in_any_byte_is_noticed(service: Service, stream: str) -> None:
    make_streams(service, f"{stream}.", 1)
    data = export(service, f"{stream}.")

    for at in range(0, len(data), 3):
        with pytest.raises(SavepointFormatError):
            pages_of(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])


def test_a_missing_model_a_bad_cursor_and_a_compressed_savepoint_are_named(service: Service) -> None:
    assert code_of(service.http.get("/v1/models/none/streams/export")) == "model_not_found"
    assert code_of(service.http.post("/v1/models/none/streams/import")) == "model_not_found"
    assert code_of(service.http.get(f"{STREAMS}/export", params={"cursor": "zzz"})) == "bad_request"
    answer = service.http.post(f"{STREAMS}/import", content=b"x", headers={"content-encoding": "gzip"})
    assert (answer.status_code, code_of(answer)) == (415, "unsupported_encoding")
