"""The dashboard while what it shows changes or goes away: models, keys, files, the tab itself; in a real browser."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import pytest

from tests.addons.dashboard.actions import (
    READY,
    advance,
    call,
    confirm,
    enter_key,
    missing,
    open_at,
    open_page,
    post,
    row,
    shown,
    shown_message,
    wait_for_counts,
    wait_for_step,
)
from tests.addons.dashboard.browser import Page
from tests.graphs import wave, write_model
from tests.processes import ServiceProcess, service_process
from tests.requests.test_api_keys import bearer, key, write_keys_file

pytestmark = pytest.mark.browser


def requests_of(end: str) -> str:
    """How often the page has requested an address with this end, as an expression."""
    return f"performance.getEntriesByType('resource').filter(e => e.name.split('?')[0].endsWith({end!r})).length"


def requested(page: Page, end: str) -> int:
    return int(page.evaluate(requests_of(end)))


def wait_for_requests(page: Page, end: str, more: int) -> None:
    """Wait until the page has requested an address with this end some more times."""
    page.wait_for(f"{requests_of(end)} >= {requested(page, end) + more}")


def hide(page: Page, *, hidden: bool) -> None:
    """Let the page find itself in a tab that is hidden, or visible again."""
    page.evaluate(f"""(() => {{
        Object.defineProperty(document, 'hidden', {{configurable: true, get: () => {json.dumps(hidden)}}});
        document.dispatchEvent(new Event('visibilitychange'));
    }})()""")


# -------------------------------------------------------------------- models and keys


def test_nothing_of_a_model_is_left_when_it_is_removed(page: Page, own: ServiceProcess, tmp_path: Path) -> None:
    advance(own, "a", to=1)
    page.open(f"{own.url}/#model=wave&view=compare&compare=a")
    page.wait_for("!document.getElementById('compare').hidden")
    wait_for_counts(page)
    assert call(own, "POST", "wave/streams/a/step", json={}).is_error
    page.wait_for("!document.getElementById('refusals').hidden")
    (tmp_path / "wave.onnx").unlink()
    call(own, "POST", "reload").raise_for_status()

    page.wait_for("document.getElementById('empty-title').textContent === 'There is no model wave'")
    parts = "['view', 'compare', 'fleet', 'missing', 'cards'].map(id => document.getElementById(id).hidden)"
    assert page.evaluate(parts) == [True] * 5
    assert page.text("#live") == "–"
    assert page.text("#model-facts") == ""
    write_model(tmp_path, "wave", wave)
    call(own, "POST", "reload").raise_for_status()
    page.wait_for("!document.getElementById('compare').hidden && !document.getElementById('cards').hidden")
    assert page.errors == []


def test_after_another_key_only_its_streams_are_shown_and_they_are_live(
    page: Page, models: Path, short_path: Path
) -> None:
    keys = write_keys_file(short_path / "keys.json", key("one", tenant="a"))
    with service_process(models, short_path, "--api-keys-file", str(keys)) as own:
        step = {"json": {"inputs": [0.5]}}
        call(own, "POST", "wave/streams/secret/step", headers=bearer("one"), **step).raise_for_status()
        page.open(f"{own.url}/#model=wave")
        enter_key(page, "wrong")
        page.wait_for("document.getElementById('key-problem').textContent")
        enter_key(page, "one")
        wait_for_step(page, "secret", 1)
        page.wait_for(READY)
        write_keys_file(keys, key("two", tenant="b"))

        enter_key(page, "two")
        page.wait_for(READY)
        page.wait_for("document.getElementById('stored').textContent === 'of 0 stored'")
        assert page.evaluate("document.querySelectorAll('[role=option]').length") == 0
        assert "secret" not in page.text("#main").replace("There is no stream secret", "")
        for n in (1, 2):
            call(own, "POST", "wave/streams/b/step", headers=bearer("two"), **step).raise_for_status()
            page.wait_for(f"{row('b')}?.startsWith('b{n}')")


def test_limits_and_version_are_read_again_if_they_were_lost(page: Page, live: ServiceProcess, stream: str) -> None:
    page.replace_fetch(
        """if (String(url).endsWith("/v1/info") && !window.lost) { window.lost = true; throw new Error("lost"); }
            return send(url, options);""",
    )
    advance(live, stream, to=1)
    open_page(page, live, stream, model="wave")

    assert str(page.wait_for("document.getElementById('about').textContent")).startswith("version ")


def test_numbers_of_the_model_before_are_not_shown(page: Page, live: ServiceProcess, stream: str) -> None:
    """The metrics that were requested while one model was open arrive after another was opened."""
    page.replace_fetch(
        """const response = await send(url, options);
            if (!window.held || !String(url).endsWith("/metrics")) return response;
            const text = await response.text();
            await new Promise((done) => window.held.push(done));
            return { ok: response.ok, text: async () => text }; // once it goes on, the page has it at once""",
    )
    open_page(page, live, model="wave")
    page.evaluate("window.held = []")
    page.wait_for("window.held.length")
    advance(live, stream, to=3)
    note = page.evaluate("""(async () => {
        const [model, note] = ['model', 'latency-note'].map((id) => document.getElementById(id));
        model.value = 'total';
        model.dispatchEvent(new Event('change'));
        note.textContent = 'unchanged';
        window.held.forEach((done) => done());
        await new Promise((done) => setTimeout(done));
        return note.textContent;
    })()""")

    assert note == "unchanged"


def test_the_forecast_of_the_address_is_used_after_a_model_that_has_none(page: Page, live: ServiceProcess) -> None:
    page.open(f"{live.url}/#model=total&forecast=20")
    page.wait_for("document.getElementById('forecast').disabled")
    page.choose("model", "wave")

    assert page.wait_for("!document.getElementById('forecast').disabled")
    assert page.evaluate("document.getElementById('forecast').value") == "20"
    assert "forecast=20" in page.evaluate("location.hash")


# -------------------------------------------------------------------- the tab


def test_a_hidden_tab_neither_reads_nor_draws(page: Page, live: ServiceProcess, stream: str) -> None:
    open_page(page, live, stream, model="wave")
    advance(live, stream, to=1)
    wait_for_step(page, stream, 1)
    page.evaluate("""import('/dashboard/streams/live_streams.js').then(({Streams: {prototype}}) => {
        const { trim } = prototype;
        prototype.trim = function (shown) {
            window.trimmedHidden ||= document.hidden;
            trim.call(this, shown);
        };
    })""")
    hide(page, hidden=True)
    advance(live, stream, since=1, to=3)
    wait_for_requests(page, "/v1/models", 2)
    before = requested(page, "/metrics")
    wait_for_requests(page, "/v1/models", 2)
    assert requested(page, "/metrics") == before
    assert page.text("#stream-facts") == "step 1"
    assert page.evaluate("window.trimmedHidden === true")  # so that its memory is bounded

    hide(page, hidden=False)
    wait_for_step(page, stream, 3)


def test_the_rate_is_right_after_a_minute_without_drawing(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, model="wave")
    shown_rate = page.evaluate("""import('/dashboard/tiles.js').then(({Tiles}) => {
        const [tiles, now] = [new Tiles(), performance.now.bind(performance)];
        performance.now = () => now() + 60_000;
        tiles.count(600);
        tiles.drawRate(true);
        performance.now = now;
        return document.getElementById('rate').textContent;
    })""")

    assert shown_rate == "10"


def test_a_stream_that_is_chosen_on_a_frozen_page_is_drawn(page: Page, live: ServiceProcess, stream: str) -> None:
    advance(live, stream, to=1)
    advance(live, f"{stream}-b", to=2)
    open_at(page, live, stream, 1)
    shown(page, f"{stream}-b")
    page.click("#pause")
    page.click(f"[data-name={stream}-b]")

    wait_for_step(page, f"{stream}-b", 2)


# -------------------------------------------------------------------- names, files, questions


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>", "a/b%2F#c?d&e=f", "pumpe-ü-水", "x" * 512])
def test_a_link_to_a_name_that_no_stream_can_have_shows_that_name(page: Page, live: ServiceProcess, name: str) -> None:
    page.emulate_screen(390, 844)
    page.open(f"{live.url}/#{httpx2.QueryParams({'model': 'wave', 'stream': name, 'search': name})}")

    assert missing(page).startswith(f"There is no stream {name}")
    assert page.evaluate("new URLSearchParams(location.hash.slice(1)).get('stream')") == name
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.querySelectorAll('#main img').length") == 0
    page.wait_for("/^No stream's id begins with/.test(document.getElementById('streams-note').textContent)")
    assert not page.evaluate("performance.getEntriesByType('resource').some(e => e.name.includes('prefix='))")


def test_an_action_that_fails_after_its_dialog_was_closed_is_reported(
    page: Page, live: ServiceProcess, stream: str
) -> None:
    page.replace_fetch(
        """if (options?.method !== "DELETE") return send(url, options);
            await new Promise((done) => (window.fail = done));
            const problem = {code: "forbidden", detail: "This key may not.", applied: "no", retry: "never"};
            return new Response(JSON.stringify(problem), {status: 403});""",
    )
    advance(live, stream, to=1)
    open_at(page, live, stream, 1)
    confirm(page, "#remove")
    page.wait_for("window.fail")
    page.click("#ask-no")
    page.wait_for("!document.getElementById('ask').open")
    page.click("#reset")
    page.evaluate("window.fail()")

    assert shown_message(page, "This key may not")
    assert page.text("#ask-problem") == ""
    assert page.evaluate("document.getElementById('ask-yes').disabled") is False


def test_the_rows_that_are_sent_are_those_of_the_newest_file(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, model="wave")
    page.evaluate("""(() => {
        const read = File.prototype.text;
        File.prototype.text = async function () {
            const text = await read.call(this);
            if (this.name === 'old.csv') await new Promise((done) => (window.readOld = done));
            return text;
        };
    })()""")
    page.drop("x\n1\n2\n", "old.csv")
    page.drop("x\n1\n2\n3\n", "new.csv")
    page.wait_for("window.readOld && !document.getElementById('csv-send').disabled")
    page.evaluate("(window.readOld(), new Promise(done => setTimeout(done)))")

    assert page.text("#csv-title") == "Send new.csv to wave"
    assert page.text("#csv-facts").startswith("3 rows")


def test_the_focus_stays_in_a_list_that_is_drawn_again(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, model="wave")
    found = page.evaluate("""import('/dashboard/refill.js').then(({refill}) => {
        const list = document.createElement('ul');
        document.body.append(list);
        const items = (names) => names.map((name) => {
            const item = document.createElement('li');
            item.dataset.key = name;
            item.append(Object.assign(document.createElement('button'), {textContent: name}));
            return item;
        });
        refill(list, items(['a', 'b']));
        list.children[1].firstChild.focus();
        refill(list, items(['c', 'b', 'a']));
        const replaced = document.activeElement.textContent;
        refill(list, [...list.children].reverse());
        const moved = document.activeElement.textContent;
        list.matches = () => true; // as while one is pressed
        const kept = [refill(list, items(['d'])), list.children.length];
        delete list.matches;
        const done = refill(list, items(['d']));
        list.remove();
        return [replaced, moved, kept, done, document.activeElement.tagName];
    })""")

    assert found == ["b", "b", [False, 3], True, "BODY"]


def test_a_vector_of_both_signs_and_any_size_is_shown_without_a_label(
    page: Page, live: ServiceProcess, stream: str
) -> None:
    open_page(page, live, stream, model="total")
    post(live, f"total/streams/{stream}/step", {"inputs": {"x": [-1013.25, 3e30]}})
    wait_for_step(page, stream, 1)
    values = "[...document.querySelectorAll('#inputs-legend .series-value')].map(v => v.textContent)"

    assert page.evaluate(values) == ["-1,013.3", "3.0e+30"]
    assert page.evaluate("document.getElementById('verdict').hidden") is True  # as these are no probabilities
