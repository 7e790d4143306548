"""`stepwell connect` from and to RabbitMQ."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from stepwell.addons.connect.broker_laws import BrokerLaws
from stepwell.addons.connect.brokers.interface import ReaderOptions
from stepwell.addons.connect.messages import BrokerUnavailableError
from stepwell.addons.connect.urls import BrokerUrl
from tests.addons.connect.brokers import BrokerProcess, rabbitmq
from tests.addons.connect.connectors import Readings, connector, ended, kill_in_turn, run_once, wait_for, written
from tests.addons.connect.readers import first_messages_around_a_loss, next_messages
from tests.addons.connect.skipping import or_skip
from tests.addons.connect.writers import out_message, write
from tests.faults.proxy import Proxy
from tests.graphs import fold_reference
from tests.processes import ServiceProcess

T = TypeVar("T")


class RabbitQueues:
    """A broker with the queues `in`, `out` and `dead`."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.port = broker.port

    def url(self, queue: str) -> str:
        return f"amqp://127.0.0.1:{self.port}/{queue}"

    def run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        import aio_pika

        async def connected() -> T:
            async with await aio_pika.connect(host="127.0.0.1", port=self.port) as one:
                return await work(await one.channel())

        return asyncio.run(connected())

    async def create(self, channel: Any) -> None:
        for name in ("in", "out", "dead"):
            await channel.declare_queue(name, durable=True)

    def add(self, documents: list[Any]) -> None:
        import aio_pika

        async def publish(channel: Any) -> None:
            for one in documents:
                body = one if isinstance(one, bytes) else json.dumps(one).encode()
                await channel.default_exchange.publish(aio_pika.Message(body), "in")

        self.run(publish)

    def read(self, name: str) -> list[dict[str, Any]]:
        """Take all messages of a queue."""

        async def take(channel: Any) -> list[dict[str, Any]]:
            queue = await channel.declare_queue(name, passive=True)
            n, found = queue.declaration_result.message_count, []
            await channel.set_qos(prefetch_count=n)
            if n:
                async with queue.iterator() as messages:  # a request for each message takes ten times as long
                    async for message in messages:
                        found.append(json.loads(message.body))
                        if len(found) == n:
                            await message.ack(multiple=True)
                            break
            return found

        return self.run(take)

    def count(self, name: str) -> int:
        async def ready(channel: Any) -> int:
            queue = await channel.declare_queue(name, passive=True)
            return int(queue.declaration_result.message_count)

        return self.run(ready)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with or_skip(rabbitmq, tmp_path_factory.mktemp("rabbitmq")) as one:
        yield one


@pytest.fixture
def queues(broker: BrokerProcess) -> RabbitQueues:
    one = RabbitQueues(broker)
    one.run(one.create)
    for name in ("in", "out", "dead"):
        one.read(name)
    return one


class TestAmqp(BrokerLaws):
    """The laws of every broker."""

    @pytest.fixture
    def url(self, queues: RabbitQueues) -> str:
        return queues.url("in")


def flags(service: ServiceProcess, queues: RabbitQueues) -> list[str]:
    return [
        *("--model", "fold", "--stream", "stream", "--position", "n"),
        *("--url", service.url, "--to", queues.url("out")),
    ]


def test_a_queue_gives_the_predictions_of_the_fold(
    service: ServiceProcess, queues: RabbitQueues, tmp_path: Path
) -> None:
    readings = Readings(51, streams=20, steps=20)
    queues.add([*readings.documents(), b"{"])

    counts = run_once(tmp_path, queues.url("in"), *flags(service, queues), "--dead-letter", queues.url("dead"), code=1)

    assert written(queues.read("out")) == readings.expected()
    assert [one["code"] for one in queues.read("dead")] == ["bad_json"]
    assert counts["messages"] == 401
    assert queues.count("in") == 0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_connectors_that_are_killed_in_turn_lose_nothing(
    models: Path, queues: RabbitQueues, short_path: Path
) -> None:
    """The broker lets one consume the queue; the other one stands by."""
    readings, out = Readings(52, streams=50, steps=120), []

    def n_written() -> int:
        out.extend(queues.read("out"))
        return len({(one["stream"], one["step"]) for one in out})

    kill_in_turn(
        short_path,
        models,
        lambda service: [queues.url("in"), *flags(service, queues)],
        readings,
        add=lambda _: queues.add(readings.documents()),
        n_written=n_written,
        victims=[0, None, 1, 0],
    )

    out.extend(queues.read("out"))
    assert written(out, doubles=True) == readings.expected()


def test_messages_that_wait_when_the_connection_is_lost_are_read_again_behind_those_that_are_open(
    queues: RabbitQueues,
) -> None:
    """Otherwise a stream has two open polls, and the service keeps the predictions of the newer one."""

    async def read() -> list[bytes]:
        with Proxy(("127.0.0.1", queues.port)) as proxy:
            reader = BrokerUrl.parse(f"amqp://127.0.0.1:{proxy.port}/in").reader(ReaderOptions())
            documents = [{"n": n} for n in range(20)]
            return await first_messages_around_a_loss(reader, proxy, lambda: queues.add(documents))

    assert asyncio.run(read()) == [b'{"n": 0}'] * 2


def test_a_queue_that_is_deleted_and_created_again_is_read_on(queues: RabbitQueues) -> None:
    """The broker ends the consumer, and leaves the connection as it is."""

    async def create_again(channel: Any) -> None:
        await channel.queue_delete("in")
        await queues.create(channel)

    async def read() -> bytes:
        reader = BrokerUrl.parse(queues.url("in")).reader(ReaderOptions())
        await reader.open()
        assert not await reader.poll(5)
        await asyncio.to_thread(queues.run, create_again)
        await asyncio.to_thread(queues.add, [{"n": 1}])
        with pytest.raises(BrokerUnavailableError):
            await next_messages(reader, 5)
        await reader.close()
        await reader.open()
        [found] = await next_messages(reader, 5)
        await reader.close()
        return found.body

    assert asyncio.run(read()) == b'{"n": 1}'


def test_a_queue_that_is_not_there_is_named(service: ServiceProcess, queues: RabbitQueues, tmp_path: Path) -> None:
    text = ended(tmp_path, queues.url("nowhere"), *flags(service, queues), code=1)

    assert "no such queue" in text


def test_check_puts_the_messages_back(service: ServiceProcess, queues: RabbitQueues, tmp_path: Path) -> None:
    queues.add([{"stream": "shown", "x": 5, "n": 1}])
    text = ended(tmp_path, queues.url("in"), *flags(service, queues), "--check")

    assert 'shown: {"x": [5]}' in text
    wait_for(lambda: queues.count("in") == 1)


def test_check_tells_how_many_messages_the_broker_lets_wait(
    service: ServiceProcess, queues: RabbitQueues, tmp_path: Path
) -> None:
    words = ["--model", "fold", "--stream", "stream", "--url", service.url, "--time", "t", "--order", "5s"]
    words += ["--check", "--once"]

    text = ended(tmp_path, queues.url("in"), *words)

    assert "at most 65,535 messages wait: amqp lets no more be open at a time" in text


def test_the_oldest_go_on_when_the_broker_sends_no_more_and_it_is_said(
    service: ServiceProcess, queues: RabbitQueues, tmp_path: Path
) -> None:
    words = ["--model", "fold", "--stream", "stream", "--url", service.url, "--time", "t", "--order", "1h"]
    queues.add([{"stream": "full", "x": t, "t": t} for t in (2, 1, 4, 3, 6, 5)])
    out = tmp_path / "out.jsonl"
    with connector(tmp_path, queues.url("in"), *words, "--order-messages", "4", "--to", f"file://{out}") as one:
        wait_for(lambda: "all that the broker lets wait" in one.text(), what=one.text)
        wait_for(lambda: out.exists() and len(out.read_text().splitlines()) >= 3, what=one.text)
    found = [json.loads(line) for line in out.read_text().splitlines()[:3]]
    assert [row["outputs"]["y"][0] for row in found] == fold_reference([1, 2, 3])


async def test_a_stream_whose_queue_is_not_there_is_refused_alone(queues: RabbitQueues) -> None:
    messages = [out_message(one, n) for n, one in enumerate(["out", "nosuch", "out"])]

    [refused] = await write(queues.url("{stream}"), messages)

    assert (refused.message, refused.reason) == (messages[1], "there is no queue 'nosuch'")
    assert [one["step"] for one in await asyncio.to_thread(queues.read, "out")] == [0, 2]
