"""How `stepwell connect` logs in to real brokers: who is let in, who is refused, and that no output has a secret."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest
import redis

from stepwell.addons.connect.brokers.interface import ReaderOptions
from stepwell.addons.connect.login import LoginSection
from stepwell.addons.connect.messages import BrokerMessage, LoginRefusedError
from stepwell.addons.connect.urls import BrokerUrl
from tests.addons.connect import nats_keys, secured
from tests.addons.connect.brokers import BrokerMissingError
from tests.addons.connect.certificates import Authority
from tests.addons.connect.connectors import ConnectorProcess, connector, n_lines, wait_for
from tests.addons.connect.secured import SECRET, Secured
from tests.addons.connect.skipping import or_skip
from tests.addons.connect.writers import out_message
from tests.processes import ServiceProcess, free_port

LIMIT_S = 10.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(f"{SECRET}\n")
    return path


def toml(url: str, login: Mapping[str, Any], table: str = "from") -> str:
    lines = [f"[{table}]", f"url = {json.dumps(url)}"]
    if table == "from":
        lines += ['stream = "stream"', 'position = "n"']
    lines += [f"[{table}.login]", *(f"{key} = {json.dumps(value)}" for key, value in login.items())]
    return "\n".join(lines) + "\n"


class Run:
    """A connector that was run to its end: its exit code, how long it took, and all that it wrote."""

    def __init__(self, folder: Path, service: ServiceProcess, config: str, *words: str, **env: str) -> None:
        path = folder / "c.toml"
        path.write_text(config + '[inputs]\nx = ["n"]\n[service]\nmodel = "fold"\n')
        started = time.monotonic()
        one = ConnectorProcess(folder, path, "--url", service.url, "--json", *words, env=env).start()
        try:
            self.code: int | None = one.process.wait(30)
        except subprocess.TimeoutExpired:
            one.kill()
            self.code = None
        self.seconds = time.monotonic() - started
        self.text = one.text()

    def is_refused(self, *words: str) -> bool:
        """Whether it was refused in time and with these words, and no secret was written."""
        assert SECRET not in self.text
        assert (self.code, self.seconds < LIMIT_S, [one for one in words if one not in self.text]) == (3, True, []), (
            self.text
        )
        return True


async def written_and_read(place: Secured, login: LoginSection) -> list[BrokerMessage]:
    """Write a message with a login, and return what is read with it."""
    url = BrokerUrl.parse(place.url("in"), login)
    reader, writer = url.reader(ReaderOptions()), url.writer("json")
    await reader.open()
    await reader.poll(1)  # some brokers keep messages from the first reader on
    await writer.open()
    assert not await writer.write([out_message("s", 1)])
    async with asyncio.timeout(30):
        while not (found := list(await reader.poll(1))):
            pass
    await reader.acknowledge(found)
    await writer.close()
    await reader.close()
    return found


class LoginLaws:
    """What the login of each broker keeps.

    Attributes:
        wrong: Words of the broker for a wrong password.
        forbidden: Its words for a topic that a user may not use.
    """

    wrong = ""
    forbidden = ""

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Secured]:
        try:
            with cls.start()(tmp_path_factory.mktemp("b"), authority) as one:
                cls.prepare(one)
                yield one
        except BrokerMissingError as exc:
            pytest.skip(str(exc))

    @classmethod
    def start(cls) -> Callable[..., AbstractContextManager[Secured]]:
        """Return what runs the broker."""
        found: Callable[..., AbstractContextManager[Secured]] = getattr(
            secured, cls.__name__.removeprefix("Test").lower()
        )
        return found

    @classmethod
    def prepare(cls, place: Secured) -> None:
        """Make what has to be there; alice may."""

    def login(self, place: Secured, password: Path, **keys: str) -> dict[str, str]:
        return {"user": "alice", "password_file": str(password), **place.login, **keys}

    def test_a_user_with_a_password_and_a_client_certificate_is_let_in(self, place: Secured, password: Path) -> None:
        found = asyncio.run(written_and_read(place, LoginSection(**self.login(place, password))))

        assert len(found) == 1

    def test_a_wrong_password_ends_with_3_and_the_words_of_the_broker(
        self, place: Secured, service: ServiceProcess, tmp_path: Path
    ) -> None:
        login = {"user": "alice", "password_env": "PUMP_PASSWORD", **place.login}
        wrong = SECRET + "x"

        run = Run(tmp_path, service, toml(place.url("in"), login), PUMP_PASSWORD=wrong)

        assert run.is_refused("of user 'alice' with password_env PUMP_PASSWORD", "([from.login])", self.wrong)

    def test_a_client_certificate_that_has_ended_ends_with_3(
        self, place: Secured, service: ServiceProcess, authority: Authority, password: Path, tmp_path: Path
    ) -> None:
        ended = authority.issue("former", expired=True)
        login = self.login(place, password, cert=str(ended.cert), key=str(ended.key))

        assert Run(tmp_path, service, toml(place.url("in"), login)).is_refused("certificate", "[from.login]")

    def test_a_broker_whose_certificate_has_ended_is_refused(
        self, service: ServiceProcess, authority: Authority, password: Path, tmp_path: Path, short_path: Path
    ) -> None:
        with or_skip(partial(self.start(), authority=authority.ending()), short_path) as place:
            run = Run(tmp_path, service, toml(place.url("in"), self.login(place, password)))

        assert run.is_refused("its certificate is not accepted: certificate has expired", "of user 'alice'")

    def test_a_broker_of_an_unknown_authority_is_refused(
        self, place: Secured, service: ServiceProcess, password: Path, tmp_path: Path
    ) -> None:
        login = self.login(place, password)
        del login["ca"]

        assert Run(tmp_path, service, toml(place.url("in"), login)).is_refused("its certificate is not accepted")

    def test_a_user_who_may_not_read_ends_with_3(
        self, place: Secured, service: ServiceProcess, password: Path, tmp_path: Path
    ) -> None:
        login = self.login(place, password, user="mallory")

        run = Run(tmp_path, service, toml(place.url("in"), login))

        assert (run.code, SECRET in run.text) == (3, False), run.text
        assert "of user 'mallory'" in run.text
        assert self.forbidden in run.text


class TestRedis(LoginLaws):
    """ACL users."""

    wrong = "invalid username-password pair"
    forbidden = "No permissions to access a key"

    def test_check_has_no_secret(self, place: Secured, service: ServiceProcess, password: Path, tmp_path: Path) -> None:
        run = Run(tmp_path, service, toml(place.url("in"), self.login(place, password)), "--check", "--once")

        assert run.code in (0, 1), run.text  # 1: the message of another test is none of the model
        assert SECRET not in run.text


class TestMosquitto(LoginLaws):
    """A list of passwords, and a list of permissions."""

    wrong = "Not authorized"
    forbidden = "Not authorized"

    def test_a_user_who_may_not_read_ends_with_3(
        self, place: Secured, service: ServiceProcess, password: Path, tmp_path: Path
    ) -> None:
        """Mosquitto grants every subscription, and sends nothing: so this is about a user who may not write."""
        mallory = self.login(place, password, user="mallory")
        where = place.url("x").replace("x/{stream}", "in")
        (tmp_path / "in.jsonl").write_text(json.dumps({"stream": "s", "n": 1}) + "\n")
        config = '[from]\nurl = "file://%s"\nstream = "stream"\n' % (tmp_path / "in.jsonl") + toml(where, mallory, "to")

        run = Run(tmp_path, service, config)

        assert (run.code, SECRET in run.text) == (3, False), run.text
        assert "of user 'mallory'" in run.text
        assert self.forbidden in run.text


class TestNats(LoginLaws):
    """Users with permissions."""

    wrong = "Authorization Violation"
    forbidden = "permissions violation"

    @classmethod
    def prepare(cls, place: Secured) -> None:
        async def create() -> None:
            import nats

            url = BrokerUrl.parse(place.url("in"), LoginSection(**place.login))
            context = (await url.login.credentials()).ssl_context
            address = f"nats://127.0.0.1:{place.broker.port}"
            client = await nats.connect(address, user="alice", password=SECRET, tls=context)
            await client.jetstream().add_stream(name="all", subjects=["in.>", "out.>"])
            await client.close()

        asyncio.run(create())


class TestRabbitmq(LoginLaws):
    """Users of a virtual host, with permissions."""

    wrong = "ACCESS_REFUSED"
    forbidden = "ACCESS_REFUSED"

    def test_a_virtual_host_that_a_user_may_not_use_ends_with_3(
        self, place: Secured, service: ServiceProcess, password: Path, tmp_path: Path
    ) -> None:
        run = Run(tmp_path, service, toml(place.url("in"), self.login(place, password, user="stranger")))

        assert run.is_refused("the virtual host 'plant/7'")


class TestKafka(LoginLaws):
    """SASL; Tansu has no permissions for topics."""

    wrong = "Invalid username or password"

    @classmethod
    def prepare(cls, place: Secured) -> None:
        asyncio.run(create_topics(place))

    def test_a_user_who_may_not_read_ends_with_3(self) -> None:  # type: ignore[override]
        pytest.skip("Tansu, the broker of the extra `brokers`, has no ACLs")

    @pytest.mark.parametrize("sasl", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
    def test_each_mechanism_with_a_password_lets_in(self, place: Secured, password: Path, sasl: str) -> None:
        async def let_in() -> None:
            reader = BrokerUrl.parse(place.url("in"), LoginSection(**self.login(place, password, sasl=sasl))).reader(
                ReaderOptions(preview=True)  # it joins no group, which takes seconds
            )
            await reader.open()
            await reader.close()

        asyncio.run(let_in())

        assert set(place.extra["gateway"].logins[-2:]) == {sasl}

    def test_scram_says_that_the_password_is_wrong(
        self, place: Secured, service: ServiceProcess, tmp_path: Path
    ) -> None:
        login = {"user": "alice", "password_env": "PUMP_PASSWORD", "sasl": "SCRAM-SHA-512", **place.login}

        run = Run(tmp_path, service, toml(place.url("in"), login), PUMP_PASSWORD=SECRET + "x")

        assert run.is_refused("by SCRAM-SHA-512", "invalid credentials")

    def test_a_token_of_a_command_lets_in_and_is_read_again_when_it_has_expired(
        self, place: Secured, service: ServiceProcess, tmp_path: Path
    ) -> None:
        token = tmp_path / "token"
        token.write_text(SECRET)
        login = {"token_command": f"cat {token}", "sasl": "OAUTHBEARER", **place.login}
        path = tmp_path / "c.toml"
        path.write_text(
            toml(place.url("tokens"), login).replace('"stream"\n', '"key"\n')
            + '[inputs]\nx = ["n"]\n[service]\nmodel = "fold"\n'
            + f'[to]\nurl = "file://{tmp_path / "out.jsonl"}"\n'
        )

        with connector(tmp_path, path, "--url", service.url) as one:
            asyncio.run(add(place, 1))
            wait_for(lambda: n_lines(tmp_path / "out.jsonl") == 1, what=one.text)
            place.extra["gateway"].token = new = SECRET.upper()
            place.extra["gateway"].end_connections()
            token.write_text(new)
            asyncio.run(add(place, 2))
            wait_for(lambda: n_lines(tmp_path / "out.jsonl") == 2, what=one.text)

        place.extra["gateway"].token = SECRET
        assert SECRET not in one.text()
        assert new not in one.text()


def test_a_password_that_is_replaced_later_is_waited_for_and_read_again(
    service: ServiceProcess, authority: Authority, password: Path, tmp_path: Path
) -> None:
    with or_skip(partial(secured.redis, authority=authority), tmp_path) as place:
        path, new = tmp_path / "c.toml", SECRET + "-2"
        keys = {"user": "alice", "password_file": str(password), **place.login}
        path.write_text(
            toml(place.url("in"), keys)
            + '[inputs]\nx = ["x"]\n[service]\nmodel = "fold"\n'
            + f'[to]\nurl = "file://{tmp_path / "out.jsonl"}"\n'
        )
        client: Any = redis.Redis(
            port=place.broker.port, username="alice", password=SECRET, ssl=True, ssl_ca_certs=keys["ca"],
            ssl_certfile=keys["cert"], ssl_keyfile=keys["key"],
        )  # fmt: skip

        with connector(tmp_path, path, "--url", service.url) as one:
            client.xadd("in", {"stream": "later", "n": 1, "x": 5})
            wait_for(lambda: n_lines(tmp_path / "out.jsonl") == 1, what=one.text)
            client.execute_command("ACL", "SETUSER", "alice", "resetpass", f">{new}")
            client.execute_command("CLIENT", "KILL", "USER", "alice", "SKIPME", "yes")
            wait_for(lambda: "waiting for a broker" in one.text() and "rejects the login" in one.text(), what=one.text)
            client.xadd("in", {"stream": "later", "n": 2, "x": 5})
            password.write_text(new)
            wait_for(lambda: n_lines(tmp_path / "out.jsonl") == 2, what=one.text)

        assert SECRET not in one.text()


def test_a_password_that_is_replaced_while_a_broker_was_away_is_read_again(
    service: ServiceProcess, authority: Authority, password: Path, tmp_path: Path
) -> None:
    with or_skip(partial(secured.nats, authority=authority), tmp_path) as place:
        TestNats.prepare(place)
        config, new = tmp_path / "c.toml", SECRET + "-2"
        keys = {"user": "alice", "password_file": str(password), **place.login}
        config.write_text(
            toml(place.url("in"), keys).replace('"stream"\n', '"topic"\n')
            + '[inputs]\nx = ["n"]\n[service]\nmodel = "fold"\n'
        )
        port = free_port()
        with connector(tmp_path, config, "--url", service.url, "--metrics-port", port) as one:
            wait_for(lambda: reads(port), what=one.text)
            place.broker.stop()
            place.extra["replace_password"](new)
            place.broker.start()
            wait_for(lambda: "rejects the login" in one.text(), what=one.text)
            password.write_text(new)
            wait_for(lambda: reads(port), what=one.text)

        assert SECRET not in one.text()


def reads(port: int) -> bool:
    """Whether a connector has everything open, by its metrics."""
    with contextlib.suppress(httpx2.RequestError):
        text = httpx2.get(f"http://127.0.0.1:{port}/metrics").text
        assert SECRET not in text
        return "stepwell_connect_reads 1.0" in text
    return False


def test_a_login_may_be_in_the_url(authority: Authority, password: Path, tmp_path: Path) -> None:
    with or_skip(partial(secured.redis, authority=authority), tmp_path) as place:
        keys = urlencode({"password_file": password, **place.login})
        url = BrokerUrl.parse(place.url("in").replace("://", "://alice@") + f"&{keys}")

        asyncio.run(opened(url))


def test_dead_letters_have_a_login_of_their_own(authority: Authority, service: ServiceProcess, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"stream": "s", "n": 1}) + "\n")
    with or_skip(partial(secured.redis, authority=authority), tmp_path) as place:
        login = {"user": "alice", "password_env": "PUMP_PASSWORD", **place.login}
        config = f'[from]\nurl = "file://{tmp_path}/in.jsonl"\nstream = "stream"\n'
        config += toml(place.url("dead"), login, "dead_letter")

        run = Run(tmp_path, service, config, PUMP_PASSWORD=SECRET + "x")

        assert run.is_refused("of user 'alice' with password_env PUMP_PASSWORD", "([dead_letter.login])")


class TestNatsKeys:
    """Ways to log in that only NATS has."""

    def test_an_nkey_lets_in(self, authority: Authority, tmp_path: Path) -> None:
        seed, public = nats_keys.user()
        (tmp_path / "seed").write_bytes(seed + b"\n")
        with nats_server(tmp_path, authority, f"authorization {{ users: [ {{nkey: {public}}} ] }}\n") as place:
            asyncio.run(nats_opened(place, nkey_file=str(tmp_path / "seed")))

    def test_a_token_lets_in_and_another_one_is_refused(self, authority: Authority, tmp_path: Path) -> None:
        (tmp_path / "token").write_text(SECRET)
        (tmp_path / "old").write_text("an-old-one")
        with nats_server(tmp_path, authority, f'authorization {{ token: "{SECRET}" }}\n') as place:
            asyncio.run(nats_opened(place, token_file=str(tmp_path / "token")))
            with pytest.raises(LoginRefusedError, match="Authorization Violation") as error:
                asyncio.run(nats_opened(place, token_file=str(tmp_path / "old")))

        assert "an-old-one" not in str(error.value)

    def test_a_credentials_file_lets_in(self, authority: Authority, tmp_path: Path) -> None:
        config, creds = nats_keys.operator_with_a_user()
        (tmp_path / "alice.creds").write_text(creds)
        with nats_server(tmp_path, authority, config) as place:
            asyncio.run(nats_opened(place, creds=str(tmp_path / "alice.creds")))


@contextlib.contextmanager
def nats_server(folder: Path, authority: Authority, users: str) -> Iterator[Secured]:
    with or_skip(partial(secured.nats, authority=authority, users=users), folder) as place:
        yield place


async def nats_opened(place: Secured, **keys: str) -> None:
    writer = BrokerUrl.parse(place.url("in"), LoginSection(**place.login, **keys)).writer("json")
    try:
        await writer.open()
    finally:
        await writer.close()


async def opened(url: BrokerUrl) -> None:
    reader = url.reader(ReaderOptions())
    await reader.open()
    await reader.close()


async def options_of(place: Secured) -> dict[str, Any]:
    url = BrokerUrl.parse(place.url("in"), LoginSection(**place.login))
    return {
        "bootstrap_servers": f"127.0.0.1:{place.broker.port}",
        "security_protocol": "SASL_SSL",
        "ssl_context": (await url.login.credentials()).ssl_context,
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "alice",
        "sasl_plain_password": SECRET,
    }


async def create_topics(place: Secured) -> None:
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    admin = AIOKafkaAdminClient(**await options_of(place))
    await admin.start()
    for name in ("in", "tokens"):
        await admin.create_topics([NewTopic(name, 1, 1)])
    await admin.close()


async def add(place: Secured, n: int) -> None:
    from aiokafka import AIOKafkaProducer

    producer = AIOKafkaProducer(**await options_of(place))
    await producer.start()
    await producer.send_and_wait("tokens", json.dumps({"n": n}).encode(), key=b"s")
    await producer.stop()
