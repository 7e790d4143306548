"""The TypeScript client in Node and in Chromium against real services, and the files that it is shipped with."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.addons.dashboard.browser import browser, chromium
from tests.all_clients.kit import FILE
from tests.all_clients.model import doubling
from tests.faults.proxy import Proxy
from tests.graphs import write_models
from tests.processes import ServiceProcess, free_port, service_process

CLIENT = Path(__file__).parents[2] / "clients" / "typescript"
LOCAL = sorted((CLIENT / "src").glob("local*.js"))
SOURCES = [file for file in sorted((CLIENT / "src").glob("*.js")) if file not in LOCAL]
README = (CLIENT / "README.md").read_text()
PROGRAM = "\n".join(re.findall(r"```js\n(.*?)```", README, re.S))
SHOWN = "".join(re.findall(r"```text\n(.*?)```", README, re.S))
MAX_COMPRESSED_BYTES = 17_000
MAX_BUNDLE_BYTES = 8_000
TYPES = (
    "CallOptions, ClientOptions, Event, Gap, Inputs, ModelDescription, Source, StepResponse, StepResults, WatchOptions"
)

Js = Callable[..., Any]
"""Runs JavaScript with `client`, `model` (doubling), `stream` and `Client`; returns what its `return` has."""


@pytest.fixture
def js(one: ServiceProcess, node: list[str], tmp_path: Path, stream: str) -> Js:
    def run(
        code: str,
        *,
        url: str = one.url,
        options: str = "{}",
        flags: Sequence[str] = (),
        between: Callable[[], object] = lambda: None,
    ) -> Any:
        """Run code; at each `await turn()` in it, `between` runs here first."""
        program = tmp_path / "program.mjs"
        program.write_text(f"""
            import {{ createInterface }} from "node:readline";
            import {{ Client, StepwellError }} from {json.dumps((CLIENT / "src" / "index.js").as_uri())};
            const lines = createInterface({{ input: process.stdin }})[Symbol.asyncIterator]();
            const turn = async () => {{ console.log("turn"); await lines.next(); }};
            const failed = async (call) => {{
              const error = await call.then((found) => {{ throw new Error(JSON.stringify(found)); }}, (error) => error);
              if (!(error instanceof StepwellError)) throw error;
              return [error.code, error.applied, error.retry];
            }};
            const client = new Client({json.dumps(url)}, {options});
            const model = client.model("doubling");
            const stream = model.stream({json.dumps(stream)});
            const found = await (async () => {{ {code} }})();
            console.log(JSON.stringify(found ?? null));
            client.close();
            process.exit();
        """)
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with subprocess.Popen([*node, *flags, str(program)], text=True, **pipes) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            last = ""
            try:
                for last in process.stdout:
                    if last == "turn\n":
                        between()
                        process.stdin.write("\n")
                        process.stdin.flush()
                errors = process.stderr.read()
            except BaseException:  # the test's time is over: without this, it would wait for the program
                process.kill()
                raise
        assert process.returncode == 0, errors
        return json.loads(last)

    return run


@pytest.fixture
def proxy(one: ServiceProcess) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", one.port)) as running:
        yield running


def url_of(proxy: Proxy) -> str:
    return f"http://127.0.0.1:{proxy.port}"


def losing_or_healing(proxy: Proxy, to: bytes = b"POST ") -> Callable[[], None]:
    """Return a function that loses the replies to some requests from its odd calls on, and none from its even ones."""

    turns = itertools.cycle([lambda: proxy.lose_reply(to=to, times=1000), proxy.heal])

    def lose_or_heal() -> None:
        next(turns)()

    return lose_or_heal


# -------------------------------------------------------------------- the README


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder in which `@stepwell/client` is installed."""
    (tmp_path / "node_modules" / "@stepwell").mkdir(parents=True)
    (tmp_path / "node_modules" / "@stepwell" / "client").symlink_to(CLIENT)
    return tmp_path


def test_the_readme_prints_what_it_shows(one: ServiceProcess, node: list[str], package: Path) -> None:
    assert ":8000" in PROGRAM
    (package / "program.mjs").write_text(PROGRAM.replace(":8000", f":{one.port}"))

    done = subprocess.run([*node, str(package / "program.mjs")], capture_output=True, text=True)

    assert done.stdout == SHOWN, done.stderr


# -------------------------------------------------------------------- timesteps of a log


def test_timesteps_of_a_source_are_applied_once_over_http_and_feeds(js: Js) -> None:
    found = js(
        """
        const at = (...positions) => ({ source: { id: "log/1", at: positions.length > 1 ? positions : positions[0] } });
        const feed = model.feed();
        const shown = ({ step, skipped, outputs }) => [step, skipped ?? 0, outputs.y];
        const first = shown(await stream.step([1], at(5)));
        const same = shown(await feed.step(stream.id, [1], at(5)));
        const chunk = shown(await stream.steps([[1], [2], [3]], at(5, 6, 9)));
        const passed = await failed(stream.step([1], at(4)));
        const positioned = shown(await stream.step([1]));
        const large = shown(await stream.step([0], { source: { id: "log/1", at: 2n ** 62n } }));
        const after = shown(await feed.step(stream.id, [0]));
        return [first, same, chunk, passed, positioned, large, after, stream.inDoubt];
        """
    )

    assert found == [
        [1, 0, [1]],
        [1, 1, [1]],
        [3, 1, [[1], [4], [11]]],
        ["source_passed", "yes", "never"],
        [4, 0, [23]],
        [5, 0, [46]],
        [6, 0, [92]],
        False,
    ]


def test_a_step_with_a_source_is_sent_again_when_its_answer_was_lost(js: Js, proxy: Proxy) -> None:
    found = js(
        """
        await stream.status().catch(() => undefined);
        await turn();
        const first = await stream.step([1], { source: { id: "log/1", at: 1 } });
        const next = await stream.step([2]);
        return [first.outputs.y, next.step, next.outputs.y];
        """,
        url=url_of(proxy),
        between=proxy.lose_reply,
    )

    assert found == [[1], 2, [4]]
    assert proxy.lost == 1


# -------------------------------------------------------------------- lost connections and deadlines


def test_a_watch_reports_its_connection_and_ends_by_its_signal(js: Js, proxy: Proxy) -> None:
    found = js(
        """
        const control = new AbortController();
        const seen = [];
        const reported = (what) => new Promise((done) => (seen.next = () => seen.at(-1) === what && done()));
        const onConnection = (retryMs) => {
          seen.push(retryMs === undefined ? "open" : retryMs > 0 ? "lost" : retryMs);
          seen.next();
        };
        const opened = reported("open");
        const run = (async () => { for await (const _ of stream.watch({ onConnection, signal: control.signal })); })();
        await opened;
        const again = reported("open");
        await turn();
        await again;
        control.abort();
        await run;
        return [seen.includes("lost"), seen.at(-1)];
        """,
        url=url_of(proxy),
        between=proxy.reset_all,
    )

    assert found == [True, "open"]


def test_a_watch_ends_by_its_signal_while_its_connection_is_being_opened(js: Js) -> None:
    accepted = []
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts connections, and responds to none
        found = js(
            """
            const control = new AbortController();
            const seen = [];
            const run = (async () => {
              for await (const _ of stream.watch({ signal: control.signal, onConnection: () => seen.push(1) }));
            })();
            await turn();
            control.abort();
            const given_up = new Promise((done) => setTimeout(() => done("given up"), 9000));  // before the client does
            return [await Promise.race([run, given_up]), seen];
            """,
            url=f"http://127.0.0.1:{silent.getsockname()[1]}",
            between=lambda: accepted.append(silent.accept()),
        )

    assert found == [None, []]


def test_a_feed_of_a_closed_client_reports_that_it_is_closed(js: Js) -> None:
    found = js("client.close(); return await failed(model.feed().step(stream.id, [1]));")

    assert found == ["closed", "unknown", "same"]


def test_a_chunk_that_must_create_its_stream_does_not_change_another(js: Js) -> None:
    found = js("""
        await stream.steps([[1], [2]], { create: "must" });
        return [await failed(client.model("doubling").stream(stream.id).steps([[3]], { create: "must" })),
                (await stream.status()).step];
    """)

    assert found == [["stream_exists", "no", "never"], 2]


def test_a_late_copy_of_a_first_request_is_not_applied_after_a_reset(js: Js) -> None:
    found = js(
        """
        const firsts = [
          (stream) => stream.step([1]),
          (stream) => stream.steps([[1], [2]]),
          (stream) => stream.rollout(2, { inputs: [1], commit: true }),
          (stream) => model.stepMany({ [stream.id]: [1] }),
        ];
        const found = [];
        for (const [n, first] of firsts.entries()) {
          const own = model.stream(`${stream.id}-${n}`);
          globalThis.sent = undefined;
          await first(own);
          const copy = globalThis.sent;
          const { state_id } = await own.reset();
          const late = await (await fetch(...copy)).json();
          const now = await own.status();
          found.push([JSON.stringify(late).includes("stream_exists"), now.step, now.state_id === state_id]);
        }
        return found;
        """,
        options="""{
            async fetch(address, init) {
              if (init.method === "POST") globalThis.sent ??= [address, { ...init, signal: null }];
              return fetch(address, init);
            },
        }""",
    )

    assert found == [[True, 0, True]] * 4


def test_the_first_step_of_a_feed_is_not_applied_to_a_stream_that_exists(js: Js) -> None:
    found = js("""
        const other = client.model("doubling").stream(stream.id);
        await stream.resume();
        await other.step([3]);
        await other.reset();
        return failed(model.feed().step(stream.id, [1]));
    """)

    assert found == ["stream_exists", "no", "never"]


def test_streams_that_exist_and_streams_that_do_not_are_stepped_by_one_call(js: Js) -> None:
    found = js("""
        await stream.step([1]);
        const [a, b] = [`${stream.id}-a`, `${stream.id}-b`];
        const results = await model.stepMany({ [a]: [5], [stream.id]: [5], [b]: [5] });
        return [results[a], results[stream.id], results[b]].map(({ step, outputs }) => [step, outputs.y]);
    """)

    assert found == [[1, [5]], [2, [7]], [1, [5]]]


def test_inputs_that_differ_are_reported_with_their_stream_also_in_a_second_request(js: Js) -> None:
    found = js("""
        await stream.step([1]);
        const [a, b] = [`${stream.id}-a`, `${stream.id}-b`];
        const results = await model.stepMany({ [stream.id]: { x: [5] }, [a]: { x: [5] }, [b]: { z: [5] } });
        return [results[stream.id].step, results[b].code, results[b].message.replace(b, "ID").slice(0, 30)];
    """)

    assert found == [2, "bad_input", "Stream 'ID' has the inputs [z]"]


def test_an_id_that_no_stream_can_have_is_the_error_of_its_row_alone(js: Js) -> None:
    found = js("""
        const results = await model.stepMany({ [stream.id]: [5], "pump 7": [5] });
        return [results[stream.id].step, results["pump 7"].code, results["pump 7"].message];
    """)

    assert found == [
        1,
        "bad_request",
        "The stream id is 'pump 7'; expected 1 to 128 of A-Z a-z 0-9 . _ : @ -.",
    ]


def test_a_watch_continues_after_a_lost_connection(js: Js, proxy: Proxy) -> None:
    found = js(
        """
        await stream.step([1]);
        const seen = [];
        for await (const event of stream.watch({ since: 0 })) {
          seen.push([event.step, event.outputs?.y[0]]);
          if (seen.length === 1) {
            await turn();
            await stream.step([2]);
          }
          if (seen.length === 2) return seen;
        }
        """,
        url=url_of(proxy),
        between=proxy.reset_all,
    )

    assert found == [[1, 1], [2, 4]]


def test_a_watch_leaves_a_connection_that_has_become_silent(js: Js, proxy: Proxy, one: ServiceProcess) -> None:
    """The client checks every 20 s, in this test every second; no FIN or RST arrives when the connection is gone."""
    found = js(
        f"""
        const [every, check] = [[], globalThis.setInterval];
        globalThis.setInterval = (act, ms) => (every.push(ms), check(act, ms / 20));
        await stream.step([1]);
        const seen = [];
        for await (const event of stream.watch({{ since: 0 }})) {{
          seen.push([event.step, event.outputs?.y[0]]);
          if (seen.length === 2) return [every[0], seen];
          await turn();
          await new Client({json.dumps(one.url)}).model("doubling").stream(stream.id).step([2]);
        }}
        """,
        url=url_of(proxy),
        between=proxy.silence_all,
    )

    assert found == [20_000, [[1, 1], [2, 4]]]


def test_a_watch_stays_connected_to_an_old_replica_whose_streams_are_quiet(js: Js) -> None:
    """Without groups it sends no heartbeat: the client connects again once, and then waits."""
    found = js(
        """
        const [check, Socket] = [globalThis.setInterval, globalThis.WebSocket];
        let [checks, connections, gaps] = [0, 0, 0];
        globalThis.setInterval = (act, ms) =>
          check(() => (act(), ++checks >= 10 && stream.step([1]).catch(() => undefined)), ms / 50);
        globalThis.WebSocket = class extends Socket {
          constructor(url, ...more) { super(url.replace("?grouped=true", ""), ...more); }
        };
        const onConnection = (pause) => { if (pause === undefined) connections++; };
        for await (const event of model.watch({ prefix: stream.id, onConnection })) {
          if (event.outputs) return [connections, gaps];
          gaps++;
        }
        """
    )

    assert found == [2, 1]


def test_after_an_unknown_outcome_the_same_call_is_applied_once(js: Js, proxy: Proxy) -> None:
    def hold_or_heal() -> None:
        proxy.blackhole = not proxy.blackhole

    found = js(
        """
        await stream.step([1]);
        await turn();
        const error = await failed(stream.step([2], { timeoutMs: 300 }));
        await turn();
        return [error, (await stream.step([2])).step, (await stream.step([3])).outputs.y];
        """,
        url=url_of(proxy),
        between=hold_or_heal,
    )

    assert found == [["no_answer", "unknown", "same"], 2, [11]]


def test_a_reset_or_a_fork_whose_outcome_is_unknown_can_be_repeated(js: Js, proxy: Proxy) -> None:
    found = js(
        """
        const found = [];
        for (const options of [{}, { to: "s" }]) {
          const own = model.stream(`${stream.id}-${options.to}`);
          await own.step([1]);
          await own.takeSnapshot("s");
          await own.step([2]);
          await turn();
          const error = await failed(own.reset({ ...options, timeoutMs: 2000 }));
          await turn();
          const again = await own.reset(options);
          found.push([error, again.step, again.replayed, (await own.step([3])).step]);
        }
        await stream.step([1]);
        await stream.takeSnapshot("s");
        for (const options of [{}, { snapshot: "s" }]) {
          const to = `${stream.id}-fork-${options.snapshot}`;
          await turn();
          const error = await failed(stream.fork(to, { ...options, timeoutMs: 2000 }));
          await turn();
          const fork = await stream.fork(to, options);
          found.push([error, (await fork.step([2])).outputs.y, (await failed(stream.fork(to, options)))[0]]);
        }
        return found;
        """,
        url=url_of(proxy),
        between=losing_or_healing(proxy),
    )

    unknown = ["no_answer", "unknown", "same"]
    assert found[:2] == [[unknown, 0, True, 1], [unknown, 1, True, 2]]
    assert found[2:] == [[unknown, [4], "stream_exists"]] * 2


def test_the_handle_that_is_forked_is_kept_until_the_outcome_is_known(js: Js, proxy: Proxy) -> None:
    """Its position identifies the fork; without it, the repeated call would find the stream that the first one made."""
    found = js(
        """
        const [id, to] = [`${stream.id}-a`, `${stream.id}-b`];
        await model.stream(id).step([1]);
        await turn();
        const error = await failed(model.stream(id).fork(to, { timeoutMs: 2000 }));
        await turn();
        model.stream(`${stream.id}-c`);
        await new Promise((resolve) => setTimeout(resolve));
        gc();
        return [error, (await (await model.stream(id).fork(to)).step([2])).outputs.y];
        """,
        url=url_of(proxy),
        options="{ keepStreams: 1 }",
        flags=["--expose-gc"],
        between=losing_or_healing(proxy),
    )

    assert found == [["no_answer", "unknown", "same"], [4]]


@pytest.mark.parametrize("then", ["stream.step([2]).then(() => stream.fork(to))", 'stream.fork(to, { snapshot: "s" })'])
def test_a_fork_of_another_position_or_snapshot_is_another_call(js: Js, proxy: Proxy, then: str) -> None:
    found = js(
        f"""
        const to = `${{stream.id}}-b`;
        await stream.step([1]);
        await stream.takeSnapshot("s");
        await turn();
        const error = await failed(stream.fork(to, {{ timeoutMs: 2000 }}));
        await turn();
        return [error, await failed({then})];
        """,
        url=url_of(proxy),
        between=losing_or_healing(proxy),
    )

    assert found == [["no_answer", "unknown", "same"], ["stream_exists", "no", "never"]]


@pytest.mark.parametrize("call", ["reset(options)", "putState({ states: { s: [5] }, step: 0 }, options)"])
def test_a_call_that_created_a_stream_can_be_repeated_and_does_not_undo_later_steps(
    js: Js, proxy: Proxy, call: str
) -> None:
    found = js(
        f"""
        const call = (options) => stream.{call};
        await turn();
        const error = await failed(call({{ timeoutMs: 2000 }}));
        await turn();
        await client.model("doubling").stream(stream.id).step([1]);
        const again = await call();
        return [error, again.step, again.replayed, (await stream.status()).step];
        """,
        url=url_of(proxy),
        between=losing_or_healing(proxy, to=b"Idempotency-Key"),
    )

    assert found == [["no_answer", "unknown", "same"], 0, True, 1]


def test_a_late_copy_of_a_call_that_was_repeated_changes_nothing(js: Js) -> None:
    found = js(
        """
        const calls = [
          (stream, by) => stream.delete(by),
          (stream, by) => stream.takeSnapshot("s", by),
          (stream, by) => stream.forgetSnapshot("s", by),
        ];
        const snapshotBetweenSteps = async (stream) => {
          await stream.step([1]);
          await stream.takeSnapshot("s");
          await stream.step([2]);
        };
        const found = [];
        for (const [n, call] of calls.entries()) {
          const own = model.stream(`${stream.id}-${n}`);
          await snapshotBetweenSteps(own);
          globalThis.holding = true;
          const error = await failed(call(own, { timeoutMs: 100 }));
          await call(own, {});
          await snapshotBetweenSteps(own);
          await fetch(...globalThis.held);
          const [{ name, step }] = await own.snapshots();
          found.push([error, (await own.status()).step, [name, step]]);
        }
        return found;
        """,
        options="""{
            fetch(address, init) {
              if (!globalThis.holding) return fetch(address, init);
              globalThis.holding = false;
              globalThis.held = [address, { ...init, signal: null }];
              return new Promise((_, reject) => init.signal.addEventListener("abort", () => reject(new Error("held"))));
            },
        }""",
    )

    unknown = ["no_answer", "unknown", "same"]
    assert found == [[unknown, 2, ["s", 1]], [unknown, 4, ["s", 3]], [unknown, 4, ["s", 3]]]


def test_a_call_ends_at_its_deadline(js: Js) -> None:
    error, tries, elapsed_ms = js(
        """
        const begin = performance.now();
        return [await failed(stream.step([1], { timeoutMs: 400 })), globalThis.tries, performance.now() - begin];
        """,
        url=f"http://127.0.0.1:{free_port()}",
        options="{ fetch: (...request) => (globalThis.tries = (globalThis.tries ?? 0) + 1, fetch(...request)) }",
    )

    assert error == ["no_answer", "no", "same"]
    assert tries > 1
    assert elapsed_ms < 30_000  # by default it would have a minute


def test_the_outcome_stays_unknown_if_only_the_first_attempt_reached_the_service(js: Js) -> None:
    found = js(
        """
        const error = await failed(stream.step([1], { timeoutMs: 3000 }));
        return [error, (await stream.status()).step];
        """,
        options="""{
            async fetch(address, init) {
              if (init.method === "POST" && globalThis.sent) {
                throw new TypeError("refused", { cause: { code: "ECONNREFUSED" } });
              }
              const response = await fetch(address, init);
              globalThis.sent = init.method === "POST";
              if (globalThis.sent) throw new TypeError("the answer was lost");
              return response;
            },
        }""",
    )

    assert found == [["no_answer", "unknown", "same"], 1]


def test_a_feed_gives_up_a_connection_on_which_nothing_arrives_any_more(js: Js) -> None:
    """As after a change of the network: nothing is delivered, nothing is closed. Time runs 20 times as fast."""
    found = js(
        """
        const feed = model.feed();
        const first = await feed.step(stream.id, [1]);
        globalThis.dead = globalThis.opened.at(-1);
        const both = await Promise.all([feed.step(stream.id, [2]), feed.step(`${stream.id}-2`, [5])]);
        return [first.step, both.map(({ step, outputs }) => [step, outputs.y]), globalThis.opened.length, feed.waiting];
        """,
        options="""{
            WebSocket: class extends WebSocket {
              constructor(...given) {
                super(...given);
                (globalThis.opened ??= []).push(this);
              }
              send(message) {
                if (globalThis.dead !== this) super.send(message);
              }
            },
            fetch: ((delay, now) => {
              globalThis.setTimeout = (act, ms, ...given) => delay(act, ms / 20, ...given);
              performance.now = () => 20 * now();
              return fetch;
            })(setTimeout, performance.now.bind(performance)),
            timeoutMs: 1_200_000,
        }""",
    )

    assert found == [1, [[2, [4]], [1, [5]]], 2, 0]


@pytest.mark.parametrize("call", ["stream.step([2], by)", "feed.step(stream.id, [2], by)", "stream.steps([[2]], by)"])
def test_an_aborted_call_can_be_repeated_and_is_applied_once(js: Js, proxy: Proxy, call: str) -> None:
    def hold_or_heal() -> None:
        proxy.blackhole = not proxy.blackhole

    found = js(
        f"""
        const feed = model.feed();
        let by = {{}};
        await feed.step(stream.id, [1]);
        await turn();
        const control = new AbortController();
        by = {{ signal: control.signal }};
        const calls = [{call}, stream.step([3], by)].map(failed);
        setTimeout(() => control.abort());
        const errors = await Promise.all(calls);
        const before = await failed({call});
        await turn();
        by = {{}};
        const again = await {call};
        return [errors, before, again.step, (await stream.step([3])).outputs.y];
        """,
        url=url_of(proxy),
        between=hold_or_heal,
    )

    aborted = ["aborted", "unknown", "same"], ["aborted", "no", "same"]
    assert found == [list(aborted), aborted[1], 2, [11]]


def test_many_calls_at_once_print_no_warning(js: Js) -> None:
    """Node warns of more than ten listeners of one signal."""
    found = js("""
        const warnings = [];
        process.on("warning", ({ message }) => warnings.push(message));
        const { signal } = new AbortController();
        const feed = model.feed();
        const names = Array.from({ length: 30 }, (_, i) => `${stream.id}-${i}`);
        await Promise.all(names.map((name) => model.stream(name).step([1], { signal })));
        await Promise.all(names.map((name) => feed.step(name, [1], { signal })));
        const watches = names.map((name) => model.stream(name).watch({ since: 0, signal }).next());
        await Promise.all(watches);
        return warnings;
    """)

    assert found == []


def test_a_stream_has_snapshots_and_its_state_can_be_moved(js: Js) -> None:
    found = js("""
        await stream.prime([[1], [2]]);
        const taken = await stream.takeSnapshot("monday");
        await stream.step([3]);
        const names = (await stream.snapshots()).map(({ name, step }) => [name, step]);
        const state = await stream.state();
        const moved = model.stream(`${stream.id}-moved`);
        const put = await moved.putState(state);
        const next = await moved.step([0]);
        const back = await stream.reset({ to: "monday" });
        await stream.forgetSnapshot("monday");
        return [taken.step, names, state.states, put.step, next.outputs.y, back.step, await stream.snapshots()];
    """)

    assert found == [2, [["monday", 2]], {"s": [11]}, 3, [22], 2, []]


def test_a_feed_sends_steps_over_http_while_it_cannot_be_opened(js: Js) -> None:
    found = js(
        """
        const { step, outputs } = await model.feed().step(stream.id, [1]);
        return [step, outputs.y];
        """,
        options=f"""{{
            WebSocket: class extends WebSocket {{
              constructor(_, protocols) {{
                super("ws://127.0.0.1:{free_port()}", protocols);
              }}
            }},
        }}""",
    )

    assert found == [1, [1]]


def test_a_closed_client_fails_what_waits(js: Js, proxy: Proxy) -> None:
    proxy.hold_requests = True
    found = js(
        """
        const calls = [stream.step([1]), stream.step([2]), model.feed().step(`${stream.id}-2`, [1])].map(failed);
        client.close();
        return [...await Promise.all(calls), await failed(stream.status())];
        """,
        url=url_of(proxy),
    )

    assert found == [["closed", "unknown", "same"]] * 4


def test_a_bulk_step_repeats_the_streams_whose_outcome_is_unknown(js: Js) -> None:
    found = js(
        """
        const [a, b] = [`${stream.id}-a`, `${stream.id}-b`];
        const results = await model.stepMany({ [a]: [1], [b]: [2] });
        return [results[a], results[b], await model.stream(b).step([3])].map(({ step, outputs, replayed }) =>
          [step, outputs.y, replayed]);
        """,
        options="""{
            async fetch(address, init) {
              const response = await fetch(address, init);
              if (init.method !== "POST" || globalThis.changed) return response;
              globalThis.changed = true; // the answer of the store to the second stream was lost
              const answer = await response.json();
              answer.step[1] = answer.state_id[1] = answer.outputs.y[1] = null;
              answer.errors[1] = { code: "outcome_unknown", detail: "?", applied: "unknown", retry: "same" };
              return Response.json(answer);
            },
        }""",
    )

    assert found == [[1, [1], None], [1, [2], True], [2, [7], None]]


def test_the_outcome_of_a_row_is_unknown_if_an_earlier_attempt_got_no_answer(js: Js) -> None:
    found = js(
        """
        const [a, b] = [`${stream.id}-a`, `${stream.id}-b`];
        const results = await model.stepMany({ [a]: [1], [b]: [2] });
        return [results[a].replayed, results[b].code, results[b].applied, model.stream(b).inDoubt];
        """,
        options="""{
            async fetch(address, init) {
              const response = await fetch(address, init);
              if (init.method !== "POST") return response;
              globalThis.posts = (globalThis.posts ?? 0) + 1;
              if (globalThis.posts === 1) throw new Error("the answer was lost");
              const answer = await response.json();
              answer.step[1] = answer.state_id[1] = answer.outputs.y[1] = null;
              answer.errors[1] = { code: "store_unavailable", detail: "?", applied: "no", retry: "never" };
              return Response.json(answer);
            },
        }""",
    )

    assert found == [True, "store_unavailable", "unknown", True]


def test_an_unreadable_answer_for_new_streams_leaves_the_results_of_the_others(js: Js) -> None:
    found = js(
        """
        const other = `${stream.id}-new`;
        await stream.step([1]);
        globalThis.replaced = 1;
        const results = await model.stepMany({ [stream.id]: [5], [other]: [5] });
        return [results[stream.id].step, results[other].code, results[other].applied, model.stream(other).inDoubt];
        """,
        options="""{
            async fetch(address, init) {
              const response = await fetch(address, init);
              return init.method === "POST" && globalThis.replaced-- === 0 ? Response.json({}) : response;
            },
        }""",
    )

    assert found == [2, "unreadable_answer", "unknown", True]


def test_a_position_that_arrives_after_its_call_has_failed_moves_no_handle_back(js: Js) -> None:
    found = js(
        """
        const [a, b] = [`${stream.id}-a`, `${stream.id}-b`];
        const many = failed(model.stepMany({ [a]: [1], [b]: [1] }));
        const first = model.stream(b).step([1]);
        setTimeout(() => globalThis.release(), 300);
        const steps = [await many, (await first).step];
        await globalThis.released;
        await new Promise((resolve) => setTimeout(resolve));
        return [...steps, (await model.stream(b).step([1])).step];
        """,
        options="""{
            async fetch(address, init) {
              if (init.method !== "GET") return fetch(address, init);
              if (address.endsWith("-a")) {
                const problem = { code: "forbidden", detail: "?", applied: "no", retry: "never" };
                return Response.json(problem, { status: 403 });
              }
              const response = await fetch(address, init);
              if (!globalThis.released) {
                globalThis.released = new Promise((resolve) => (globalThis.release = resolve));
                await globalThis.released;
              }
              return response;
            },
        }""",
    )

    assert found == [["forbidden", "no", "never"], 1, 2]


def test_a_slow_watcher_gets_the_newest_events_and_a_gap(js: Js) -> None:
    gap, events = js("""
        const watch = model.watch({ prefix: stream.id });
        let open = false;
        const first = watch.next().then(() => (open = true));
        while (!open) await stream.step([0]);
        const streams = Array.from({ length: 200 }, (_, i) => `${stream.id}-${i}`);
        const bulk = { method: "POST", path: `${model.path}/step`, body: { streams, inputs: streams.map(() => [1]) } };
        for (let i = 0; i < 75; i++) await client.request(bulk);
        let [gap, events] = [0, 0];
        for await (const event of watch) {
          gap += event.gap ?? 0;
          if (!event.gap) events += 1;
          if (event.stream === streams.at(-1) && event.step === 75) return [gap, events];
        }
    """)

    assert gap > 0
    assert events <= 11_000  # those that were kept, and those that arrived while they were read
    assert gap + events >= 15_000


# -------------------------------------------------------------------- a service with keys and a limit


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service that requires a key, whose tenant may send 20 timesteps a second."""
    models = write_models(tmp_path_factory.mktemp("models"), doubling)
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    scopes = ["step", "read"]
    keys.write_text(
        json.dumps({"keys": [{"id": "k", "sha256": sha256(b"secret").hexdigest(), "tenant": "t", "scopes": scopes}]})
    )
    flags = ("--api-keys-file", str(keys), "--tenant-rate", "20")
    with service_process(models, tmp_path_factory.mktemp("sw"), *flags) as running:
        yield running


def test_a_key_opens_requests_feeds_and_watches(js: Js, guarded: ServiceProcess) -> None:
    found = js(
        """
        const events = stream.watch();
        const next = events.next();
        const feed = model.feed();
        const steps = [await stream.step([1]), await feed.step(stream.id, [2])].map(({ step }) => step);
        await Promise.race([next, (async () => { for (;;) await feed.step(stream.id, [0]); })()]);
        return [steps, (await next).value.stream === stream.id];
        """,
        url=guarded.url,
        options='{ key: "secret" }',
    )

    assert found == [[1, 2], True]


def test_without_a_key_requests_feeds_and_watches_are_rejected(js: Js, guarded: ServiceProcess) -> None:
    found = js(
        """
        const calls = [stream.step([1]), model.feed().step("x", [1]), stream.watch().next()];
        return Promise.all(calls.map(failed));
        """,
        url=guarded.url,
    )

    assert found == [["unauthenticated", "no", "never"]] * 3


def test_a_repetition_waits_as_long_as_retry_after_demands(js: Js, guarded: ServiceProcess) -> None:
    results, early, rejected = js(
        """
        const chunk = Array.from({ length: 40 }, () => [0]); // two seconds' timesteps
        const calls = ["a", "b"].map((name) => model.stream(`${stream.id}-${name}`).steps(chunk));
        const results = await Promise.all(calls);
        return [results.map(({ step }) => step), globalThis.early, globalThis.rejected];
        """,
        url=guarded.url,
        options="""{
            key: "secret",
            fetch: async (address, init) => {
              globalThis.until ??= new Map();
              const id = init.method + address;
              if (performance.now() < (until.get(id) ?? 0)) globalThis.early = (globalThis.early ?? 0) + 1;
              const response = await fetch(address, init);
              if (response.status === 429) {
                globalThis.rejected = (globalThis.rejected ?? 0) + 1;
                until.set(id, performance.now() + 1000 * Number(response.headers.get("retry-after")));
              }
              return response;
            },
        }""",
    )

    assert results == [40, 40]
    assert rejected > 0
    assert early is None


# -------------------------------------------------------------------- values


def test_integers_beyond_53_bits_are_exact(js: Js) -> None:
    found = js("""
        const fold = client.model("fold").stream(stream.id);
        const { outputs } = await fold.steps([[1], [2], [2n ** 53n + 1n], new BigInt64Array([-(2n ** 62n)])]);
        return outputs.y.flat().map(String);
    """)

    state, expected = 0, []
    for x in (1, 2, 2**53 + 1, -(2**62)):
        state = (state * 1_000_003 + x + 1 + 2**63) % 2**64 - 2**63
        expected.append(str(state))
    assert found == expected


def test_inputs_are_addressed_by_name(js: Js) -> None:
    found = js("""
        const named = client.model("two_inputs");
        const one = await named.stream(stream.id).step({ a: new Int32Array([1, 2]), b: 3 });
        const rows = { [stream.id]: { a: [1, 1], b: 1 }, [`${stream.id}-2`]: { b: 5, a: [0, 0] } };
        const many = await named.stepMany(rows);
        return [one.outputs, ...Object.values(many).map(({ outputs }) => outputs)];
    """)

    assert found == [{"total": [4, 5], "last": 3}, {"total": [6, 7], "last": 1}, {"total": [5, 5], "last": 5}]


def test_a_buffer_can_be_reused_at_once(js: Js) -> None:
    found = js("""
        const buffer = new Float32Array([1]);
        const calls = [1, 2, 3].map((x) => {
          buffer[0] = x;
          return stream.step(buffer);
        });
        return (await Promise.all(calls)).map(({ outputs }) => outputs.y[0]);
    """)

    assert found == [1, 4, 11]


MISTAKES = {
    "new Client('ftp://x')": "bad_url",
    "client.model('no/name')": "bad_request",
    "model.stream('..')": "bad_request",
    "stream.takeSnapshot('a/b')": "bad_request",
    "new Client(client.transport.base + '/nowhere').model('doubling').watch().next()": "not_found",
    "client.model('nothing').watch().next()": "model_not_found",
    "client.model('nothing').feed().step('a', [1])": "model_not_found",
    "(client.transport.WebSocket = undefined, model.feed().step('a', [1]))": "no_websocket",
}


def test_a_mistake_is_named(js: Js) -> None:
    calls = ", ".join(f"async () => {code}" for code in MISTAKES)
    found = js(f"const codes = []; for (const call of [{calls}]) codes.push((await failed(call()))[0]); return codes;")

    assert dict(zip(MISTAKES, found, strict=True)) == MISTAKES


def test_a_name_that_no_snapshot_can_have_deletes_no_stream(js: Js) -> None:
    found = js("await stream.step([1]); const errors = await failed(stream.forgetSnapshot('..'));"
               "return [errors, (await stream.status()).step];")  # fmt: skip

    assert found == [["bad_request", "no", "never"], 1]


def test_a_handle_in_doubt_is_kept_also_if_it_was_evicted_before(js: Js, proxy: Proxy) -> None:
    found = js(
        """
        const id = `${stream.id}-x`;
        await model.stream(id).step([1]);
        await turn();
        const error = await failed(model.stream(id).step([2], { timeoutMs: 2000 }));
        await turn();
        for (let i = 0; i < 20; i++) model.stream(`${stream.id}-${i}`);
        await new Promise((resolve) => setTimeout(resolve)); // until then weak references are kept
        globalThis.gc();
        const again = await model.stream(id).step([2]);
        return [error, again.step, again.outputs.y];
        """,
        url=url_of(proxy),
        options="{ keepStreams: 0 }",
        flags=["--expose-gc"],
        between=losing_or_healing(proxy),
    )

    assert found == [["no_answer", "unknown", "same"], 2, [4]]


# -------------------------------------------------------------------- msgpack, types: with packages of npm


@pytest.fixture(scope="module")
def installed(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the client with its development packages."""
    copy = tmp_path_factory.mktemp("client") / "typescript"
    shutil.copytree(CLIENT, copy, ignore=shutil.ignore_patterns("node_modules"))
    (copy / "node_modules").symlink_to(node_modules)
    return copy


def test_the_conformance_cases_pass_with_msgpack(installed: Path, one: ServiceProcess, node: list[str]) -> None:
    command = [*node, str(installed / "conformance.mjs"), one.url, str(FILE), "@msgpack/msgpack"]

    done = subprocess.run(command, capture_output=True, text=True)

    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) > 30, done.stderr
    assert [result for result in results if result["error"]] == []


def test_a_streamed_rollout_that_is_refused_rejects(js: Js) -> None:
    code = """return failed((async () => { for await (const _ of stream.rolloutTimesteps(0)); })());"""

    assert js(code) == ["bad_request", "no", "never"]


def test_a_streamed_rollout_ends_with_its_signal(js: Js) -> None:
    code = """
        const control = new AbortController();
        const seen = [];
        const ended = await failed((async () => {
          for await (const { outputs } of stream.rolloutTimesteps(4000, { inputs: [0], signal: control.signal })) {
            seen.push(outputs.y);
            control.abort();
          }
        })());
        return [ended, seen.length < 4000];
    """

    assert js(code) == [["aborted", "no", "same"], True]


def test_a_streamed_rollout_whose_answer_was_lost_is_sent_again(js: Js, one: ServiceProcess) -> None:
    with Proxy(("127.0.0.1", one.port)) as proxy:
        proxy.lose_reply(to=b"/rollout")
        code = """
            const seen = [];
            for await (const { outputs } of stream.rolloutTimesteps(2, { inputs: [1] })) seen.push(outputs.y[0]);
            return seen;
        """

        assert js(code, url=f"http://127.0.0.1:{proxy.port}") == [1, 3]
        assert proxy.lost == 1


def test_the_readme_prints_the_same_with_msgpack(installed: Path, one: ServiceProcess, node: list[str]) -> None:
    library = 'import * as msgpack from "@msgpack/msgpack";\n'
    program = library + PROGRAM.replace(':8000")', f':{one.port}", {{ msgpack }})').replace("js-", "mp-")
    (installed / "program.mjs").write_text(program.replace('"@stepwell/client"', '"./src/index.js"'))

    done = subprocess.run([*node, str(installed / "program.mjs")], capture_output=True, text=True)

    assert "{ msgpack }" in program
    assert done.stdout == SHOWN.replace("js-", "mp-"), done.stderr


def tsc(installed: Path, *arguments: str, folder: Path | None = None) -> str:
    """Run the TypeScript compiler in a folder, by default the client's, and return what it reports."""
    compiler = str(installed / "node_modules" / ".bin" / "tsc")
    done = subprocess.run([compiler, *arguments], cwd=folder or installed, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_the_sources_have_no_type_errors_and_the_declarations_are_theirs(installed: Path) -> None:
    shutil.rmtree(installed / "types")

    assert tsc(installed, "--project", "tsconfig.types.json") == ""
    for declared in (installed / "src").glob("*.d.ts"):
        shutil.copy(declared, installed / "types")
    fresh, committed = (
        {file.name: file.read_text() for file in (root / "types").iterdir()} for root in (installed, CLIENT)
    )
    assert fresh == committed, "run: npm run types"


def test_the_bundle_of_the_dashboard_is_made_of_the_sources(installed: Path, tmp_path: Path) -> None:
    program, *arguments, out = shlex.split(json.loads((CLIENT / "package.json").read_text())["scripts"]["bundle"])
    committed = CLIENT / out.removeprefix("--outfile=")

    command = [str(installed / "node_modules" / ".bin" / program), *arguments, f"--outfile={tmp_path / 'bundle.js'}"]
    subprocess.run(command, cwd=installed, check=True, capture_output=True)

    assert (tmp_path / "bundle.js").read_text() == committed.read_text(), "run: npm run bundle"


def test_only_a_wrong_program_has_type_errors(installed: Path, package: Path) -> None:
    wrong = PROGRAM.replace("stream.step([1])", 'stream.step("one")').replace("first.step)", "first.stop)")
    (package / "readme.mts").write_text(f'import type {{ {TYPES} }} from "@stepwell/client";\n{PROGRAM}')
    (package / "wrong.mts").write_text(wrong)
    options = [
        "--strict",
        "--noEmit",
        "--module",
        "NodeNext",
        "--target",
        "ES2022",
        "--lib",
        "ES2022,DOM",
    ]

    reported = tsc(installed, *options, "readme.mts", "wrong.mts", folder=package).splitlines()

    found = [re.match(r"(.*)\(.*\): error (TS\d+)", line) for line in reported if not line.startswith(" ")]
    assert [one and one.groups() for one in found] == [
        ("wrong.mts", "TS2345"),  # a text is no tensor
        ("wrong.mts", "TS2339"),  # a response has no member `stop`
    ]


def test_the_types_of_the_api_are_those_of_the_service(one: ServiceProcess, node: list[str]) -> None:
    script = CLIENT / "scripts" / "api-types.mjs"

    done = subprocess.run([*node, str(script), f"{one.url}/openapi.json"], capture_output=True, text=True, check=True)

    assert done.stdout == (CLIENT / "src" / "api.d.ts").read_text(), "run: npm run api, then npm run types"


# -------------------------------------------------------------------- Chromium


@pytest.mark.browser
@pytest.mark.skipif(chromium() is None, reason="needs Chromium: apt-get install chromium")
def test_the_client_runs_in_a_browser(one: ServiceProcess, tmp_path: Path, stream: str) -> None:
    sources = {file.name: file.read_text() for file in SOURCES}
    with browser(str(chromium()), tmp_path) as one_browser, one_browser.tab() as tab:
        tab.open(f"{one.url}/healthz")  # a page of the service's address, without a policy for scripts
        found = tab.evaluate(f"""(async () => {{
            const sources = {json.dumps(sources)};
            const loaded = {{}};
            const load = (name) => loaded[name] ??= URL.createObjectURL(new Blob(
                [sources[name].replace(/^((?:im|ex)port .* from) "[.][/](.*?)"/gm, (_, names, other) =>
                    `${{names}} "${{load(other)}}"`)],
                {{ type: "text/javascript" }}));
            const {{ Client }} = await import(load("index.js"));
            const client = new Client(location.origin);
            const model = client.model("doubling");
            const [stream, feed] = [model.stream({json.dumps(stream)}), model.feed()];
            const steps = [await stream.step([1]), await feed.step(stream.id, [2]), await stream.steps([[3], [4]])];
            const seen = [];
            for await (const event of stream.watch({{ since: 0 }})) if (seen.push(event.step) === 2) break;
            client.close();
            return [steps.map(({{ step, outputs }}) => [step, outputs.y]), seen];
        }})()""")

    assert found == [[[1, [1]], [2, [4]], [4, [[11], [26]]]], [1, 2]]


# -------------------------------------------------------------------- what is shipped


def test_the_client_is_small() -> None:
    together = b"".join(file.read_bytes() for file in SOURCES)

    bundle = CLIENT.parents[1] / "service/stepwell/addons/dashboard/page/vendor/stepwell-client.js"

    assert len(gzip.compress(together, 9)) < MAX_COMPRESSED_BYTES
    assert len(gzip.compress(bundle.read_bytes(), 9)) < MAX_BUNDLE_BYTES


def test_no_file_names_a_registry_or_has_dependencies() -> None:
    files = [file for file in CLIENT.rglob("*") if file.is_file() and "node_modules" not in file.parts]
    package = json.loads((CLIENT / "package.json").read_text())

    assert len(files) > 20
    foreign = ("registry", str(CLIENT.parents[1]), tempfile.gettempdir())
    assert [file for file in files if any(text in file.read_text() for text in foreign)] == []
    assert not [file for file in files if "lock" in file.name]
    assert "dependencies" not in package
