"""redis-py's asyncio client on the loop under test, against a Redis server: by TCP and by a Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

pytest.importorskip("redis")

import redis.exceptions
from redis.asyncio import BlockingConnectionPool, Connection, Redis, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tests.asyncio_loop import loops
from tests.examples.real_clients import redis_server
from tests.peers import pattern
from tests.waiting import LIMIT

T = TypeVar("T")
BODY = pattern(10 << 20)


class Service:
    """A Redis server that can be stopped and started again, and a way to it."""

    def __init__(self, loop: str, path: Path, by: str) -> None:
        self.loop = loop
        self.path = path
        self.by = by
        self.port: int | None = None
        self._running = ExitStack()

    def start(self) -> None:
        more = ("--unixsocket", str(self.path), "--proto-max-bulk-len", "64mb")
        self.port = self._running.enter_context(redis_server(*more, port=self.port))

    def stop(self) -> None:
        self._running.close()

    def client(self, connections: int = 50) -> Redis:
        """It tries nothing again by itself, so that every failure shows."""
        retry = Retry(NoBackoff(), 0)
        if self.by == "unix":
            pool = BlockingConnectionPool(
                connections, LIMIT, UnixDomainSocketConnection, path=str(self.path), retry=retry
            )
        else:
            pool = BlockingConnectionPool(connections, LIMIT, Connection, host="127.0.0.1", port=self.port, retry=retry)
        return Redis.from_pool(pool)

    def run(self, use: Callable[[Redis], Coroutine[object, object, T]]) -> T:
        async def main() -> T:
            async with self.client() as client:
                return await asyncio.wait_for(use(client), LIMIT)

        return loops.run(self.loop, main())


@pytest.fixture(params=["tcp", "unix"])
def service(request: pytest.FixtureRequest, loop: str, tmp_path: Path) -> Iterator[Service]:
    made = Service(loop, tmp_path / "redis", request.param)
    made.start()
    yield made
    made.stop()


def test_values(service: Service) -> None:
    async def use(client: Redis) -> list[object]:
        return [
            await client.ping(),
            await client.set("key", b"\0\r\n"),
            await client.get("key"),
            await client.get("other"),
            await client.incr("counter", 41),
            await client.incr("counter"),
        ]

    assert service.run(use) == [True, True, b"\0\r\n", None, 41, 42]


def test_large_values(service: Service) -> None:
    async def use(client: Redis) -> object:
        await client.set("key", BODY)
        return await client.get("key")

    assert service.run(use) == BODY


def test_a_pipeline(service: Service) -> None:
    async def use(client: Redis) -> object:
        async with client.pipeline(transaction=False) as pipeline:
            for number in range(5000):
                pipeline.set(f"key {number}", number)
                pipeline.get(f"key {number}")
            return await pipeline.execute()

    assert service.run(use) == [answer for number in range(5000) for answer in (True, b"%d" % number)]


def test_a_transaction(service: Service) -> None:
    async def use(client: Redis) -> object:
        async with client.pipeline() as pipeline:
            pipeline.set("key", 1)
            pipeline.incr("key")
            pipeline.incr("key")
            return await pipeline.execute()

    assert service.run(use) == [True, 2, 3]


def test_many_at_once(service: Service) -> None:
    """Over as many connections as the pool makes."""

    async def use(client: Redis) -> object:
        await asyncio.gather(*(client.set(f"key {number}", number) for number in range(500)))
        return await asyncio.gather(*(client.get(f"key {number}") for number in range(500)))

    assert service.run(use) == [b"%d" % number for number in range(500)]


def test_publish_and_subscribe(service: Service) -> None:
    messages = [b"hello", pattern(1 << 20), *(b"%d" % number for number in range(200))]

    async def use(client: Redis) -> list[object]:
        received: list[object] = []
        async with client.pubsub(ignore_subscribe_messages=True) as subscription:
            await subscription.subscribe("news")
            publishing = asyncio.ensure_future(publish(client))
            async for message in subscription.listen():
                received.append(message["data"])
                if len(received) == len(messages):
                    break
            await publishing
        return received

    async def publish(client: Redis) -> None:
        while await client.publish("news", messages[0]) == 0:
            pass  # until the subscription is known
        for message in messages[1:]:
            await client.publish("news", message)

    assert service.run(use) == messages


async def wait_for_the_blocked(client: Redis) -> None:
    """Until the server has a client that waits in BLPOP."""
    while not any(entry["cmd"] == "blpop" for entry in await client.client_list()):
        pass


def test_a_blocking_pop_and_its_time_limit(service: Service) -> None:
    async def use(client: Redis) -> list[object]:
        waiting = asyncio.ensure_future(client.blpop(["queue"], timeout=LIMIT))
        await wait_for_the_blocked(client)
        await client.rpush("queue", "a")
        return [await waiting, await client.blpop(["queue"], timeout=0.01)]

    assert service.run(use) == [(b"queue", b"a"), None]


def test_a_server_that_is_restarted(service: Service) -> None:
    """Who waits is told, who asks while it is away is told, and who asks afterwards is served."""

    async def main() -> list[object]:
        async with service.client() as client:
            await client.set("key", "lost with the server")
            waiting = asyncio.ensure_future(client.blpop(["queue"], timeout=LIMIT))
            await wait_for_the_blocked(client)
            await asyncio.to_thread(service.stop)
            with pytest.raises(redis.exceptions.ConnectionError):
                await waiting
            with pytest.raises(redis.exceptions.ConnectionError):
                await client.get("key")
            await asyncio.to_thread(service.start)
            return [await client.get("key"), await client.ping()]

    assert loops.run(service.loop, main()) == [None, True]
