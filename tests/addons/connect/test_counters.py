"""What a connector counts, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client import generate_latest

from stepwell.addons.connect.counters import ConnectCounters


def page(counters: ConnectCounters) -> str:
    return generate_latest(counters.registry).decode()


def test_late_timesteps_are_counted_by_their_source() -> None:
    counters = ConnectCounters()
    counters.add_late(["a#time", "b#time", "a#time"])

    assert 'stepwell_connect_late_total{source="a#time"} 2.0' in page(counters)
    assert counters.report()["late"] == 3


def test_a_partition_that_another_connector_reads_now_is_not_shown_any_more() -> None:
    counters = ConnectCounters()
    counters.set_waiting({"a": 1, "b": 2}, {"a": 5.0, "b": 6.0})
    counters.set_waiting({"b": 3}, {"b": 7.0})

    assert 'stepwell_connect_waiting{source="b"} 3.0' in page(counters)
    assert 'source="a"' not in page(counters)
