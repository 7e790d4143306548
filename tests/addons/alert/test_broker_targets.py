"""Alarms to real brokers, which get every alarm in the order of its stream; and a Redis Cluster as the store."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.addons.alert.alerts import alerting, webhook
from tests.addons.alert.test_delivery import STREAMS, hook, in_order, rules_of, step_all
from tests.addons.connect.brokers import BrokerProcess, kafka, mosquitto, nats
from tests.addons.connect.connectors import wait_for
from tests.addons.connect.skipping import or_skip
from tests.addons.connect.test_kafka import KafkaTopics
from tests.addons.connect.test_mqtt import MqttTopics
from tests.addons.connect.test_nats import NatsSubjects
from tests.processes import ServiceProcess, service_process
from tests.store.clusters import cluster

Alarms = Callable[[int], list[dict[str, Any]]]
"""Returns the alarms that a target has got so far; of Kafka once there are so many."""


@contextlib.contextmanager
def kafka_target(folder: Path) -> Iterator[tuple[BrokerProcess, str, Alarms]]:
    with or_skip(kafka, folder) as broker:
        topics = KafkaTopics(broker)
        yield broker, topics.url("out"), lambda n: [alarm for _, alarm in topics.read("out", n)]


@contextlib.contextmanager
def mqtt_target(folder: Path) -> Iterator[tuple[BrokerProcess, str, Alarms]]:
    with or_skip(mosquitto, folder) as broker:
        topics = MqttTopics(broker)
        try:
            yield broker, topics.url("out/{stream}"), lambda _: list(topics.out)
        finally:
            topics.client.loop_stop()


@contextlib.contextmanager
def nats_target(folder: Path) -> Iterator[tuple[BrokerProcess, str, Alarms]]:
    with or_skip(nats, folder) as broker:
        subjects = NatsSubjects(broker)
        subjects.run(subjects.create)
        yield broker, subjects.url("out.{stream}"), lambda _: [alarm for _, alarm in subjects.read("OUT")]


def by_stream(alarms: list[dict[str, Any]]) -> dict[str, list[tuple[str, int]]]:
    """Return state and step of the alarms of each stream, each id once."""
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for alarm in {alarm["id"]: alarm for alarm in alarms}.values():
        found[alarm["stream"]].append((alarm["state"], alarm["step"]))
    return dict(found)


@pytest.mark.slow
@pytest.mark.parametrize("target", [kafka_target, mqtt_target])
def test_a_broker_gets_every_alarm_in_the_order_of_its_stream(
    service: ServiceProcess, tmp_path: Path, short_path: Path, target: Callable[[Path], Any]
) -> None:
    """The alert process is killed in between, so a double with the same id is allowed."""
    name = target.__name__
    with target(short_path) as (_, url, alarms), webhook() as receiver:
        rules = rules_of(service, name, f'url = "{url}"', hook(receiver))
        with alerting(tmp_path, rules, "--data-dir", service.folder / "data") as [process]:
            wait_for(lambda: process.leads, what=process.text)
            total = step_all(service, name, 20, 7)
            wait_for(lambda: len({one["id"] for one in alarms(1)}) > 0, what=process.text)
            process.kill()
            process.start()
            wait_for(lambda: process.leads, what=process.text)
            total += step_all(service, f"{name}.b", 10, 8)
            wait_for(lambda: len({one["id"] for one in alarms(total)}) >= total, what=process.text)
            wait_for(lambda: len(receiver.alarms()) >= total, what=process.text)
        found = by_stream(alarms(total))

    assert total > STREAMS
    assert found == receiver.by_stream()
    assert in_order(found)


@pytest.mark.slow
def test_a_broker_that_was_away_gets_the_alarms_that_were_raised_meanwhile(
    service: ServiceProcess, tmp_path: Path, short_path: Path
) -> None:
    with nats_target(short_path) as (broker, url, alarms):
        rules = rules_of(service, "away", f'url = "{url}"')
        with alerting(tmp_path, rules, "--data-dir", service.folder / "data") as [process]:
            wait_for(lambda: process.leads, what=process.text)
            broker.stop()
            total = step_all(service, "away", 20, 9)
            wait_for(lambda: "does not accept alarms" in process.text(), what=process.text)
            broker.start()
            wait_for(lambda: len({one["id"] for one in alarms(total)}) >= total, what=process.text)
            wait_for(lambda: "accepts alarms again" in process.text(), what=process.text)
        found = by_stream(alarms(total))

    assert sum(map(len, found.values())) == total
    assert in_order(found)


@pytest.mark.slow
def test_alarms_are_kept_in_a_redis_cluster(models: Path, tmp_path: Path, short_path: Path) -> None:
    """Its lease, states, outboxes and index are in one slot; two processes take over from each other."""
    with (
        cluster() as three,
        service_process(models, short_path / "one", "--redis", three.url, "--history", "lstm=500") as service,
        webhook() as receiver,
    ):
        rules = f'store = "{three.url}"\n' + rules_of(service, "cluster", hook(receiver))
        with alerting(tmp_path, rules, processes=2) as two:
            wait_for(lambda: any(one.leads for one in two), what=two[0].text)
            total = step_all(service, "cluster", 20, 10)
            wait_for(lambda: len(receiver.alarms()) >= total, what=lambda: (len(receiver.alarms()), total))
            next(one for one in two if one.leads).kill()
            wait_for(lambda: any(one.leads for one in two), what=two[0].text)
            total += step_all(service, "cluster.b", 20, 11)
            wait_for(lambda: len(receiver.alarms()) >= total, what=lambda: (len(receiver.alarms()), total))
        with three.client() as client:
            kept = [key.decode() for key in client.scan_iter(match="swl:alerts:*")]

    assert len(receiver.alarms()) == total
    assert in_order(receiver.by_stream())
    assert kept
    assert {key[key.index("{") : key.index("}")] for key in kept} == {kept[0][kept[0].index("{") : kept[0].index("}")]}
