"""The way to the store: replies in order, and what was surely not sent told apart from what may have been done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from stepwell.store.transport.connection import CommandError, NoReplyError, NotSentError
from stepwell.store.transport.server import NotReplicated
from stepwell.store.transport.transport import RedisTransport, open_transport
from stepwell.store.transport.urls import BadStoreUrlError
from tests.processes import free_port
from tests.servers import Server, server
from tests.store.clusters import sentinels


@asynccontextmanager
async def wire(url: str, *, timeout: float = 5.0) -> AsyncIterator[RedisTransport]:
    one = open_transport(url, timeout=timeout)
    try:
        yield one
    finally:
        await one.close()


async def until(fact: Callable[[], bool]) -> None:
    while not fact():  # noqa: ASYNC110 - a server's view of its clients, of which there is no event
        await asyncio.sleep(0)


async def test_commands_of_many_callers_get_their_own_replies(shared_redis: Server) -> None:
    async with wire(shared_redis.url) as one:
        replies = await asyncio.gather(*(one.call(("ECHO", n), ("ECHO", f"{n}!")) for n in range(200)))

    assert replies == [[b"%d" % n, b"%d!" % n] for n in range(200)]


async def test_many_callers_share_one_connection(redis_server: Server) -> None:
    async with wire(redis_server.url) as one:
        ids = await asyncio.gather(*(one.call(("CLIENT", "ID")) for _ in range(50)))

    assert len({tuple(reply) for reply in ids}) == 1


async def test_a_caller_that_waits_for_a_replica_keeps_nobody_waiting(redis_server: Server) -> None:
    async with wire(redis_server.url, timeout=2) as one:
        waiting = asyncio.create_task(one.call(("SET", "x", "y"), confirm=True))
        others = await asyncio.gather(*(one.call(("PING",)) for _ in range(5)))

        assert not waiting.done()
        assert others == [[b"PONG"]] * 5
        assert await waiting == [NotReplicated(b"OK")]


async def test_a_cancelled_caller_that_waits_for_a_replica_leaves_no_connection_behind(redis_server: Server) -> None:
    with redis_server.client() as client:
        async with wire(redis_server.url) as one:
            await one.call(("PING",))
            before = len(client.client_list())
            waiting = asyncio.create_task(one.call(("SET", "x", "y"), confirm=True))
            await until(lambda: bool(client.exists("x")))
            waiting.cancel()
            await asyncio.wait([waiting])
            await until(lambda: len(client.client_list()) == before)


@pytest.mark.parametrize("confirm", [False, True])
async def test_a_way_that_was_closed_opens_no_connection(redis_server: Server, confirm: bool) -> None:
    """What is still under way then fails at once; sending it again is in vain."""
    async with wire(redis_server.url) as one:
        await one.call(("SET", "x", "y"), confirm=confirm)
        waiting = asyncio.create_task(one.call(("SET", "x", "y"), confirm=True))
        await asyncio.sleep(0)
    with pytest.raises((NoReplyError, NotSentError)):
        await waiting
    for call in (one.call(("SET", "x", "z"), confirm=confirm), one.open_dedicated()):
        with pytest.raises(NotSentError) as refused:
            await call

        assert refused.value.is_permanent
    with redis_server.client() as client:
        assert client.get("x") in (None, b"y")
        await until(lambda: len(client.client_list()) == 1)


async def test_a_connection_that_is_open_only_when_the_way_is_closed_is_not_kept(redis_server: Server) -> None:
    one = open_transport(redis_server.url, timeout=5)
    opening = asyncio.create_task(one.call(("PING",)))
    await asyncio.sleep(0)
    await one.close()

    with pytest.raises(NotSentError):
        await opening
    with redis_server.client() as client:
        await until(lambda: len(client.client_list()) == 1)


async def test_a_refusal_is_a_reply_and_harms_no_other(shared_redis: Server) -> None:
    async with wire(shared_redis.url) as one:
        refused, pong = await one.call(("NONSENSE",), ("PING",))

    assert isinstance(refused, CommandError)
    assert (refused.code, pong) == ("ERR", b"PONG")


async def test_a_large_reply_comes_whole(shared_redis: Server) -> None:
    big = b"x" * 3_000_000
    async with wire(shared_redis.url) as one:
        assert await one.call(("ECHO", big)) == [big]


async def test_a_late_reply_is_never_taken_for_the_next_commands(redis_server: Server) -> None:
    async with wire(redis_server.url, timeout=0.2) as one:
        await one.call(("PING",))
        with redis_server.client() as client:
            client.execute_command("CLIENT", "PAUSE", 400, "ALL")
            late = await asyncio.gather(*(one.call(("ECHO", n)) for n in range(3)), return_exceptions=True)
            client.ping()  # answered when the pause is over
        after = await one.call(("ECHO", "after"))

    assert [type(reply) for reply in late] == [NoReplyError] * 3
    assert after == [b"after"]


async def test_a_caller_that_is_gone_takes_no_ones_reply_with_it(shared_redis: Server) -> None:
    async with wire(shared_redis.url) as one:
        await one.call(("PING",))
        gone = asyncio.create_task(one.call(("ECHO", "gone")))
        await asyncio.sleep(0)
        gone.cancel()
        assert await one.call(("ECHO", "here")) == [b"here"]


async def test_a_server_that_is_away_was_surely_not_sent_anything(short_path: Path) -> None:
    async with wire(f"unix://{short_path}/nobody") as one:
        with pytest.raises(NotSentError):
            await one.call(("PING",))


async def test_a_connection_that_breaks_may_have_done_the_command(redis_server: Server) -> None:
    async with wire(redis_server.url) as one:
        await one.call(("PING",))
        waiting = asyncio.create_task(one.call(("BLPOP", "nothing", 5)))
        await asyncio.sleep(0)
        redis_server.kill()
        with pytest.raises(NoReplyError):
            await waiting
        with pytest.raises(NotSentError):
            await one.call(("PING",))


async def test_a_connection_is_made_anew_when_the_server_is_back(redis_server: Server) -> None:
    async with wire(redis_server.url) as one:
        await one.call(("PING",))
        redis_server.kill()
        await asyncio.to_thread(redis_server.start)
        replies = await asyncio.gather(*(one.call(("PING",)) for _ in range(3)), return_exceptions=True)
        again = await one.call(("PING",))

    assert again == [b"PONG"]
    assert all(reply == [b"PONG"] or isinstance(reply, NotSentError | NoReplyError) for reply in replies)


@pytest.fixture
def locked_port(short_path: Path) -> Iterator[int]:
    """The TCP port of a server that needs a password."""
    port = free_port()
    with server(short_path / "r", "--port", str(port)) as one, one.client() as client:
        client.config_set("requirepass", "secret")
        yield port


@pytest.mark.parametrize("account", [":secret", "default:secret"])
async def test_account_and_database_are_those_of_the_url(locked_port: int, account: str) -> None:
    async with wire(f"redis://{account}@127.0.0.1:{locked_port}/3") as one:
        [me] = await one.call(("CLIENT", "INFO"))

    assert b" db=3 " in me


async def test_a_wrong_password_is_told(locked_port: int) -> None:
    async with wire(f"redis://:wrong@127.0.0.1:{locked_port}/0") as one:
        with pytest.raises(NotSentError, match="password"):
            await one.call(("PING",))


async def test_sentinel_leads_to_the_primary(short_path: Path) -> None:
    port = free_port()
    with server(short_path / "r", "--port", str(port)) as primary, sentinels(short_path, port) as guard:
        async with wire(f"redis+sentinel://127.0.0.1:{guard}/pumps/2") as one:
            await one.call(("SET", "here", "x"))
        with primary.client() as client:
            assert client.info("keyspace")["db2"]["keys"] == 1


async def test_a_sentinel_may_want_an_account_of_its_own(short_path: Path) -> None:
    port = free_port()
    with (
        server(short_path / "r", "--port", str(port)),
        sentinels(short_path, port, options="requirepass secret", password="secret") as guard,
    ):
        async with wire(f"redis+sentinel://127.0.0.1:{guard}/pumps?sentinel_password=secret") as one:
            assert await one.call(("PING",)) == [b"PONG"]
        async with wire(f"redis+sentinel://127.0.0.1:{guard}/pumps", timeout=0.5) as one:
            with pytest.raises(NotSentError):
                await one.call(("PING",))


async def test_a_primary_that_became_a_replica_is_left_with_all_replies_that_have_come(redis_server: Server) -> None:
    async with wire(redis_server.url) as one:
        [before] = await one.call(("CLIENT", "ID"))
        with redis_server.client() as client:
            client.replicaof("127.0.0.1", 1)
            calls = await asyncio.gather(*(one.call(("SET", "x", "y")) for _ in range(4)))
            [after] = await one.call(("CLIENT", "ID"))

    refused = [reply for [reply] in calls]
    assert [reply.code for reply in refused if isinstance(reply, CommandError)] == ["READONLY"] * 4
    assert after != before


def test_a_url_of_another_kind_is_refused() -> None:
    for url in (
        *("http://x", "localhost", "redis://host:port/0", "redis://host:6379/0?nonsense=1", "redis+sentinel://host:1"),
        *("redis+sentinel://host:1/pumps/first", "redis+sentinel://host:1/pumps?nonsense=1", "redis+sentinel:///pumps"),
        *("redis+cluster://", "redis+cluster://host:port", "redis+cluster://host:1/3"),
        *("redis+cluster://host:1?nonsense=1", "redis+cluster://[::1:6379"),
    ):
        with pytest.raises(BadStoreUrlError):
            open_transport(url, timeout=1)


def test_a_url_of_every_kind_is_taken() -> None:
    for url in (
        "unix:///run/redis.sock?db=2",
        "rediss://u:p%40ss@host:6379/0?ssl_cert_reqs=none&ssl_check_hostname=false",
        "redis+sentinel://u:p@[::1]:26379,host/pumps?sentinel_password=x",
        "rediss+sentinel://host/pumps/3?ssl_ca_certs=/ca.pem",
        "redis+cluster://u:p@[::1]:6379,host",
        "rediss+cluster://host?ssl_ca_certs=/ca.pem",
    ):
        open_transport(url, timeout=1)
