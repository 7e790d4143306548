"""Each fault of the proxy works as documented, because other tests depend on it."""

from __future__ import annotations

import contextlib
import time

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.faults.proxy import Proxy
from tests.servers import Server


def client(proxy: Proxy, *, timeout: float = 5) -> redis.Redis:
    return redis.Redis(port=proxy.port, socket_timeout=timeout, retry=Retry(NoBackoff(), 0))


def test_a_held_request_is_delivered_late(shared_redis: Server) -> None:
    with Proxy(shared_redis.socket) as proxy, client(proxy, timeout=0.2) as one, shared_redis.client() as direct:
        direct.delete("proxy-late")
        one.ping()
        proxy.blackhole = True
        with pytest.raises(redis.TimeoutError):
            one.set("proxy-late", "x")
        assert direct.get("proxy-late") is None
        proxy.heal()
        while direct.get("proxy-late") != b"x":  # after the client has timed out
            pass


def test_a_lost_reply_belongs_to_an_executed_command(shared_redis: Server) -> None:
    with Proxy(shared_redis.socket) as proxy, client(proxy) as one, shared_redis.client() as direct:
        one.ping()
        proxy.lose_reply(to=b"proxy-lost")
        assert one.ping()
        with pytest.raises(redis.ConnectionError):
            one.set("proxy-lost", "done")
        assert (direct.get("proxy-lost"), proxy.lost) == (b"done", 1)
        assert one.ping()


def test_a_delay_applies_in_both_directions(shared_redis: Server) -> None:
    with Proxy(shared_redis.socket) as proxy, client(proxy) as one:
        one.ping()
        proxy.delay = 0.1
        began = time.monotonic()
        one.ping()

    assert time.monotonic() - began >= 0.2


def test_refused_and_reset_connections_fail_until_healed(shared_redis: Server) -> None:
    with Proxy(shared_redis.socket) as proxy, client(proxy) as one:
        one.ping()
        proxy.refuse = True
        proxy.reset_all()
        with pytest.raises(redis.ConnectionError):
            one.ping()
        proxy.heal()
        with contextlib.suppress(redis.ConnectionError):
            one.ping()
        assert one.ping()
