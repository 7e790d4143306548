"""`python -m benchmarks.connect`: CPU per timestep of `stepwell connect`, as a ratio to a bare loop of the same client.

The bare loop reads and acknowledges, and does nothing else: it decodes no message and sends nothing. With `--format
avro` or `protobuf` it also decodes each one with the connector's library (fastavro, protobuf). Each run of the
connector reads a log that no run has read before, so every timestep is applied. What a process needs to start, and
to connect to everything, is measured with a single message and subtracted. Runs are interleaved; the median is
printed. With `--before FOLDER`, the connector of another source tree runs in the same turns, to compare with:
`git worktree add --detach FOLDER COMMIT`.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from benchmarks.trees import service_of
from tests.addons.connect.brokers import BrokerMissingError, kafka
from tests.graphs import lstm, write_model
from tests.processes import free_port, service_process
from tests.servers import server

BARE_REDIS = """
import asyncio, sys, redis.asyncio as redis
async def main(port, n, log):
    client = redis.Redis(port=port)
    await client.xgroup_create(log, "bare", id="0", mkstream=True)
    while n > 0:
        reply = await client.xreadgroup("bare", "one", {log: ">"}, count=16384)
        ids = [entry for _, entries in reply for entry, _ in entries]
        n -= len(ids)
        for _, entries in reply:
            for _, fields in entries if decode else ():
                decode(fields[b"data"])
        await client.xack(log, "bare", *ids)
    await client.xgroup_destroy(log, "bare")
asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
"""
BARE_KAFKA = """
import asyncio, secrets, sys
from aiokafka import AIOKafkaConsumer
async def main(port, n, log):
    group = "bare" + secrets.token_hex(8)
    consumer = AIOKafkaConsumer(log, bootstrap_servers=f"127.0.0.1:{port}", group_id=group, enable_auto_commit=False,
                                auto_offset_reset="earliest", fetch_max_bytes=8 << 20)
    await consumer.start()
    while n > 0:
        for records in (await consumer.getmany(timeout_ms=500, max_records=16384)).values():
            n -= len(records)
            for record in records if decode else ():
                decode(record.value)
        await consumer.commit()
    await consumer.stop()
asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
"""


AVRO = {
    "type": "record",
    "name": "Timestep",
    "fields": [
        {"name": "stream", "type": "string"},
        {"name": "x", "type": {"type": "array", "items": "double"}},
    ],
}
DECODE = {
    "json": "decode = None\n",
    "avro": f"""
import fastavro, io
schema = fastavro.parse_schema({AVRO!r})
def decode(body): return fastavro.schemaless_reader(io.BytesIO(body), schema, None)
""",
    "protobuf": """
from benchmarks.connect import timestep_class
decode = timestep_class().FromString
""",
}
"""What a bare loop begins with."""


def timestep_class() -> Any:
    """Return the class of a timestep of Protobuf."""
    from google.protobuf import descriptor_pool, message_factory

    pool = descriptor_pool.DescriptorPool()
    pool.Add(timestep_file())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Timestep"))


def timestep_file() -> Any:
    from google.protobuf import descriptor_pb2

    file = descriptor_pb2.FileDescriptorProto(name="timestep.proto", syntax="proto3")
    kind = file.message_type.add(name="Timestep")
    kind.field.add(name="stream", number=1, type=9, label=1)
    kind.field.add(name="x", number=2, type=1, label=3)
    return file


def encoder(body_format: str) -> Callable[[dict[str, Any]], bytes]:
    """Return the function that encodes a timestep."""
    if body_format == "avro":
        import fastavro

        schema = fastavro.parse_schema(AVRO)

        def encode(document: dict[str, Any]) -> bytes:
            file = io.BytesIO()
            fastavro.schemaless_writer(file, schema, document)
            return file.getvalue()

        return encode
    if body_format == "protobuf":
        kind = timestep_class()
        return lambda document: kind(**document).SerializeToString()
    return lambda document: json.dumps(document).encode()


def schema_of(body_format: str) -> bytes:
    """Return the file with the schema of timesteps."""
    if body_format == "avro":
        return json.dumps(AVRO).encode()
    from google.protobuf import descriptor_pb2

    data: bytes = descriptor_pb2.FileDescriptorSet(file=[timestep_file()]).SerializeToString()
    return data


def cpu_s(command: list[str], *, tree: Path | None = None) -> float:
    """Run a command, of another source tree if there is one, and return its CPU seconds, user and system."""
    env = None if tree is None else service_of(tree)[1]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def messages(n: int, streams: int) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Yield stream ids and bodies, streams interleaved."""
    rng = random.Random(1)
    for _ in range(n):
        yield f"s{rng.randrange(streams)}", {"x": [round(rng.random(), 4) for _ in range(4)]}


@contextmanager
def redis_streams(
    folder: Path, logs: dict[str, int], streams: int, encode: Callable[[dict[str, Any]], bytes]
) -> Iterator[tuple[str, int, str]]:
    """Fill a Redis stream for each log; yield the bare loop, the port and the connector's URL."""
    port = free_port()
    with server(folder / "redis", "--port", str(port)), redis.Redis(port=port) as client:
        for log, n in logs.items():
            pipe = client.pipeline(transaction=False)
            for stream, body in messages(n, streams):
                pipe.xadd(log, {"data": encode({"stream": stream, **body})})
            pipe.execute()
        yield BARE_REDIS, port, f"redis://127.0.0.1:{port}/0?stream={{log}}&group={{group}}"


async def fill_topics(
    address: str, logs: dict[str, int], streams: int, encode: Callable[[dict[str, Any]], bytes]
) -> None:
    """Create a topic of four partitions for each log, and fill it."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    producer = AIOKafkaProducer(bootstrap_servers=address, acks="all")
    await admin.start()
    await producer.start()
    for log, n in logs.items():
        await admin.create_topics([NewTopic(log, 4, 1)])
        for stream, body in messages(n, streams):
            await producer.send(log, encode({"stream": stream, **body}), key=stream.encode())
    await producer.stop()
    await admin.close()


@contextmanager
def kafka_topics(
    folder: Path, logs: dict[str, int], streams: int, encode: Callable[[dict[str, Any]], bytes]
) -> Iterator[tuple[str, int, str]]:
    """Fill a Kafka topic for each log; yield as `redis_streams` does."""
    with kafka(folder) as broker:
        asyncio.run(fill_topics(f"127.0.0.1:{broker.port}", logs, streams, encode))
        yield BARE_KAFKA, broker.port, f"kafka://127.0.0.1:{broker.port}/{{log}}?group={{group}}"


def main() -> None:
    """Measure and print one line for each broker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=60_000)
    parser.add_argument("--streams", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--brokers", nargs="+", default=["redis", "kafka"])
    parser.add_argument("--format", choices=list(DECODE), default="json")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="a source tree to compare with")
    given = parser.parse_args()
    print(f"{given.messages} messages, {given.streams} streams, medians of {given.repeats} interleaved runs")
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        folder = Path(name)
        write_model(folder / "models", "lstm", lstm)
        with service_process(folder / "models", folder / "one") as service:
            for broker in given.brokers:
                fill = {"redis": redis_streams, "kafka": kafka_topics}[broker]
                sizes = {"one": 1, "in": given.messages}
                if given.before is not None:
                    sizes |= {"one-before": 1, "in-before": given.messages}
                logs = {f"{log}{i}": n for i in range(given.repeats) for log, n in sizes.items()}
                try:
                    with fill(folder, logs, given.streams, encoder(given.format)) as (bare, port, url):
                        schema = folder / "schema"
                        if given.format != "json":
                            schema.write_bytes(schema_of(given.format))
                        bare = DECODE[given.format] + bare  # noqa: PLW2901 - with what it decodes
                        found = measure(
                            bare,
                            port,
                            url,
                            service.url,
                            schema=schema,
                            body_format=given.format,
                            n=given.messages,
                            repeats=given.repeats,
                            before=given.before,
                        )
                except BrokerMissingError as exc:
                    sys.exit(str(exc))
                print(f"{broker}: {found}")


def measure(
    bare: str,
    port: int,
    url: str,
    service: str,
    *,
    schema: Path,
    body_format: str,
    n: int,
    repeats: int,
    before: Path | None = None,
) -> str:
    """Return a sentence with the CPU time per message of both, in microseconds, and their ratio."""
    loop = [sys.executable, "-c", bare, str(port)]
    connect = [sys.executable, "-P", "-m", "stepwell", "connect"]
    config = schema.with_suffix(".toml")
    samples: dict[str, list[float]] = {"bare": [], "connect": [], **({"before": []} if before is not None else {})}
    for i in range(repeats):

        def connector_s(log: str, group: str = f"connect{i}", *, tree: Path | None = None) -> float:
            table = {"url": url.format(log=log, group=group), "stream": "stream", "format": body_format}
            table |= {} if body_format == "json" else {"schema": str(schema)}
            lines = [f"{name} = {json.dumps(value)}" for name, value in table.items()]
            config.write_text("\n".join(["[from]", *lines, "[service]", 'model = "lstm"', ""]))
            return cpu_s([*connect, str(config), "--url", service, "--once"], tree=tree)

        def cost(log: str, count: int, turn: int = i) -> dict[str, float]:
            found = {"bare": cpu_s([*loop, str(count), f"{log}{turn}"]), "connect": connector_s(f"{log}{turn}")}
            if before is not None:
                found["before"] = connector_s(f"{log}-before{turn}", tree=before)
            return found

        whole, start = cost("in", n), cost("one", 1)
        for name, values in samples.items():
            values.append((whole[name] - start[name]) / (n - 1) * 1e6)
    medians = {name: statistics.median(values) for name, values in samples.items()}
    ratio = medians["bare"] / medians["connect"]
    compared = ""
    if before is not None:
        times = medians["connect"] / medians["before"]
        compared = f"; the connector before {medians['before']:.1f} us, now {times:.2f} times that"
    both = f"bare loop {medians['bare']:.1f} us, connector {medians['connect']:.1f} us per message"
    return f"{both}: {ratio:.2f} of it{compared}"


if __name__ == "__main__":
    main()
