"""Lists of streams are cached with the names of their streams, up to a bound."""

from __future__ import annotations

from collections.abc import Sequence

from stepwell.codec.checked_stream_ids import CheckedStreamIds, StreamNames
from stepwell.store.keys import record_key
from stepwell.types import StreamKey
from stepwell_client.wire.formats import JSON
from tests.codec.test_codec import body_of, bulk_document, wire


class Owner:
    """The streams of a tenant, and how many names were computed."""

    def __init__(self, cache: CheckedStreamIds, tenant: str) -> None:
        self.made = 0
        self._cache = cache
        self._tenant = tenant

    def names(self, streams: list[str]) -> StreamNames:
        def make(streams: Sequence[str]) -> StreamNames:
            self.made += len(streams)
            keys = [StreamKey(self._tenant, "m", stream) for stream in streams]
            return keys, [record_key(*key) for key in keys]

        return self._cache.names(streams, self._tenant, make)


def test_names_of_a_checked_list_are_computed_once_per_tenant() -> None:
    cache = CheckedStreamIds()
    one, other = Owner(cache, "one"), Owner(cache, "other")
    cache.add(["a", "b"])

    found = [owner.names(["a", "b"]) for owner in (one, other, one, other)]

    assert (one.made, other.made) == (2, 2)
    assert found[2] == found[0] != found[1] == found[3]
    assert [key.tenant for key in found[2][0]] == ["one", "one"]


def test_a_list_with_the_same_first_stream_has_its_own_names() -> None:
    cache = CheckedStreamIds()
    owner = Owner(cache, "one")
    for streams in (["a", "b"], ["a", "c"], ["a", "b", "c"]):
        cache.add(streams)
        owner.names(streams)

        assert [key.stream for key in owner.names(streams)[0]] == streams
        assert not cache.unchecked(streams)


def test_only_the_streams_that_a_list_has_in_place_of_others_are_checked_and_named() -> None:
    cache = CheckedStreamIds()
    one, other = Owner(cache, "one"), Owner(cache, "other")
    for streams in (["a", "b", "c"], ["a", "d", "c"], ["a", "d", "e"]):
        assert len(cache.unchecked(streams)) == (3 if streams[1] == "b" else 1)
        cache.add(streams)
        keys, names = one.names(streams)

        assert [key.stream for key in keys] == streams
        assert names == [record_key("one", "m", stream) for stream in streams]
    assert one.made == 3 + 1 + 1
    assert [key.stream for key in other.names(streams)[0]] == streams


def test_names_of_a_list_that_was_not_checked_are_not_cached() -> None:
    cache = CheckedStreamIds()
    owner = Owner(cache, "one")

    assert owner.names(["a"]) == owner.names(["a"])
    assert (owner.made, [*cache.unchecked(["a"])]) == (2, [0])


def test_the_cache_holds_no_more_streams_than_its_bound() -> None:
    cache = CheckedStreamIds(max_streams=100)
    owners = [Owner(cache, f"t{n}") for n in range(5)]

    for n in range(1000):
        streams = [f"{n}-{i}" for i in range(10)]
        cache.add(streams)
        for owner in owners:
            owner.names(streams)

        assert cache.size <= 100


def test_a_list_that_would_fill_the_cache_is_not_cached() -> None:
    cache = CheckedStreamIds(max_streams=100)
    few, many = ["a", "b"], [f"s{i}" for i in range(26)]
    cache.add(few)
    cache.add(many)

    assert (len(cache.unchecked(few)), len(cache.unchecked(many))) == (0, 26)


def test_a_list_with_an_invalid_stream_is_checked_each_time() -> None:
    decoder = wire(("x", "float32", [4]))
    body = body_of(bulk_document(streams=["a", "b/c"]))

    for _ in range(2):
        assert list(decoder.bulk(body, JSON, chunk=False).faults) == [1]
    assert [*decoder.checked_ids.unchecked(["a", "b/c"])] == [0, 1]
