"""The functions of the dashboard's modules, evaluated in a real browser."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.addons.dashboard.browser import Browser, Page

pytestmark = pytest.mark.browser
Evaluate = Callable[[str], Any]

MODULES = {
    "address": "address",
    "alerts": "cards/alerts",
    "chart_file": "charts/chart_file",
    "comparison": "charts/comparison",
    "csv_table": "recording/csv_table",
    "default_stream": "streams/default_stream",
    "forecast": "charts/forecast",
    "marks": "charts/marks",
    "metrics": "metrics",
    "shapes": "shapes",
    "stream_status": "streams/stream_status",
    "streams": "streams/live_streams",
    "trend": "streams/trend",
    "truth": "charts/truth",
}
VECTOR = "[{name: 'y', shape: [3]}]"
TWO = "[{name: 'y', shape: [2], labels: ['sit', 'stand']}]"


@pytest.fixture(scope="module")
def evaluate(files: str, chromium_browser: Browser) -> Iterator[Evaluate]:
    """Evaluates an expression with the modules imported."""
    with chromium_browser.tab() as tab:
        tab.open(f"{files}/icon.svg")
        for module, path in MODULES.items():
            tab.evaluate(f"import('/{path}.js').then((found) => {{ globalThis.{module} = found; }})")
        yield tab.evaluate


def keep(*messages: str) -> str:
    """The rows of a stream after messages, each with its place and its step; a null step interrupts the lines."""
    takes = "; ".join(f"s.addRows({message})" for message in messages)
    return f"(() => {{ const s = new streams.Streams().get('a'); {takes}; return s.rows.map(r => [r.at, r.step]); }})()"


def opened(before: str, chosen: str) -> str:
    """The stream that the page opens with, of `live`, which has had a timestep, and `idle`."""
    return f"""(() => {{ const all = new streams.Streams(), byDefault = new default_stream.DefaultStream();
        all.add([{{stream: 'idle', step: 1}}]); all.get('live').recordCommit(1, [{{}}]);
        byDefault.restart(); {before}
        return byDefault.of(all, {chosen}); }})()"""


def stored(after: str) -> str:
    """The rows of a stream that was read at step 7, after what follows."""
    return f"""(() => {{ const s = new streams.Streams().get('a');
        s.setStored(7, {{y: [1]}}); s.setStored(7, {{y: [1]}}); {after};
        return s.rows.map(r => [r.at, r.step]); }})()"""


def replicas(script: str) -> str:
    return f"""(() => {{ const all = new metrics.Replicas();
        const scrape = (process, replays, count, refused) => ({{process, replays, conflicts: 0,
            refusals: {{bad_input: refused}}, buckets: [[1, count], [Infinity, count]]}});
        {script} }})()"""


def forecast_after(rows: str) -> str:
    """Where a forecast from step 7 begins in a stream, and its first interval of `y` and of `x`."""
    return f"""(() => {{ const shown = new forecast.Forecast({{}});
        const fan = {{middle: [1, 2], low: [0, 1], high: [2, 3]}};
        shown.found = {{step: 7, horizon: 2, outputs: {{y: [fan]}}, inputs: {{x: [fan]}}}};
        const s = new streams.Streams().get('a');
        s.addRows(7, [{{x: [5]}}], [{{y: [6]}}]); {rows};
        const of = (which, tensor) => shown.after(s.rows, which, [{{tensor, index: 0}}, {{tensor: 'other', index: 0}}]);
        return [of('outputs', 'y'), of('inputs', 'x')].map((f) => f && [f.at, f.horizon, f.fans]); }})()"""


def trends(script: str) -> str:
    return f"""(() => {{ const {{Trend, changes}} = globalThis.trend;
        const trend = (f, n = 60) => {{ const t = new Trend();
            for (let i = 0; i < n; i += 1) t.add({{y: [f(i)]}}); return t; }};
        {script} }})()"""


SILENCES = [("silent", 60), ("when", 10), ("silent", 80), ("silent", 100.5)]
KINDS = [("silent", 9), ("when", 1), ("expired", 5), ("when", 2), ("refused", 3)]
SEVERITIES = [("info", 9), (None, 1), ("critical", 5), ("critical", 6), ("warning", 2)]
MODEL = "{name: 'm', inputs: [{name: 'x', shape: [2], dtype: 'float32'}, {name: 'on', shape: [], dtype: 'bool'}]}"
CURL_LINE = f"shapes.curlLine({MODEL}, 'http://h:1/base/', true)"
METRICS = r"""`# TYPE stepwell_step_seconds histogram
stepwell_step_seconds_bucket{le="0.001",model="m"} 50
stepwell_step_seconds_bucket{le="0.002",model="m"} 100
stepwell_step_seconds_bucket{le="+Inf",model="m"} 100
stepwell_step_seconds_bucket{le="0.001",model="other"} 9
stepwell_replays_total 4
stepwell_conflicts_total{x="y"} 2
stepwell_refusals_total{code="bad_input"} 3
process_start_time_seconds 1.7e9
`"""

XY = "[{name: 'x', shape: [2], dtype: 'float32', labels: ['a', 'b']}, {name: 'n', shape: [], dtype: 'int64'}]"
MOVES = """{inputs: [{name: 'x', shape: [2], dtype: 'float32'}, {name: 'c', shape: [], dtype: 'int64'}],
    outputs: [{name: 'y', shape: [2]}, {name: 'p', shape: [3], labels: ['a', 'b', 'd']}],
    feedback: {x: {output: 'y', scale: 2, offset: [0, 1]}, c: 'p'}}"""
AHEAD = """{inputs: [{name: 'x', shape: [1], dtype: 'float32'}], outputs: [{name: 'y', shape: [2, 1]}],
    feedback: {x: {output: 'y', horizon: 2}}}"""
Y = "{which: 'outputs', tensor: 'y', index: 0}"
ON_LOGITS = """{inputs: [{name: 'c', shape: [], dtype: 'int64'}], outputs: [{name: 'p', shape: [3]}],
    feedback: {c: {output: 'p', logits: true}}}"""


def rows(*steps: int) -> str:
    """Rows of a stream whose output `y` is ten times the step; 0 interrupts the lines, a negative one has no value."""
    parts = [
        f"{{step: {abs(step) or 'null'}, inputs: {{}}, outputs: {{y: [{10 * step if step >= 0 else 'NaN'}]}}}}"
        for step in steps
    ]
    return f"{{rows: [{', '.join(parts)}]}}"


def inputs_of(csv: str) -> str:
    """The inputs of `XY` that the first row of a CSV file gives."""
    return f"""(() => {{ const t = csv_table.parseCsv({json.dumps(csv)});
        return csv_table.inputsOf({XY}, csv_table.columnsOf({XY}, t.header), t, 0); }})()"""


def truth_of(csv: str) -> str:
    """The ground truth for `MOVES` that a CSV file gives, by steps."""
    return f"[...truth.truthOf({MOVES}.outputs, csv_table.parseCsv({json.dumps(csv)}))]"


FACTS: dict[str, dict[str, Any]] = {
    "the page opens with a live stream unless one is chosen": {
        opened("", "null"): "live",
        opened("", "'idle'"): "live",
        opened("all.get('idle').recordCommit(2, [{}]); all.get('idle').seenAt -= 9;", "'idle'"): "idle",
        opened("byDefault.end();", "'idle'"): "idle",
        opened("byDefault.end();", "'of a link'"): "of a link",
        opened("all.remove('live');", "null"): "idle",
        opened("all.remove('live'); all.remove('idle');", "null"): None,
    },
    "timesteps become rows, and matrices are flattened in row order": {
        f"shapes.timesteps({{y: [1, 2, 3]}}, {VECTOR})": [{"y": [1, 2, 3]}],
        f"shapes.timesteps({{y: [[1, 2, 3], [4, 5, 6]]}}, {VECTOR})": [{"y": [1, 2, 3]}, {"y": [4, 5, 6]}],
        "shapes.timesteps({y: 7}, [{name: 'y', shape: []}])": [{"y": [7]}],
        "shapes.timesteps({y: [7, 8]}, [{name: 'y', shape: []}])": [{"y": [7]}, {"y": [8]}],
        f"Number.isNaN(shapes.timesteps({{y: [1, null, 3]}}, {VECTOR})[0].y[1])": True,
        "shapes.timesteps({y: [[1, 2], [3, 4]]}, [{name: 'y', shape: [2, 2]}])": [{"y": [1, 2, 3, 4]}],
    },
    "series are named by labels of their number or by tensor and index, and at most twelve are drawn": {
        f"shapes.seriesOf({TWO}).series.map(s => s.name)": ["sit", "stand"],
        f"shapes.seriesOf({VECTOR}).series.map(s => s.name)": ["y 0", "y 1", "y 2"],
        "shapes.seriesOf([{name: 'y', shape: []}]).series.map(s => s.name)": ["y"],
        "shapes.seriesOf([{name: 'y', shape: [2], labels: ['a']}]).series.map(s => s.name)": ["y 0", "y 1"],
        "(f => [f.series.length, f.total])(shapes.seriesOf([{name: 'x', shape: [500]}]))": [12, 500],
        "shapes.seriesOf([{name: 'x', shape: [50]}], Infinity).series.length": 50,
    },
    "probabilities are between 0 and 1 and sum to 1, and the most probable class is shown": {
        "[[0.25, 0.75], [0.25, 0.7502]].map(shapes.areProbabilities)": [True, True],
        "[[0.25, 0.76], [1], [1.5, -0.5], [NaN, 1], undefined].some(shapes.areProbabilities)": False,
        f"shapes.mostProbable({{y: [0.1, 0.9]}}, {TWO})": {"name": "stand", "index": 1, "share": 0.9},
        f"shapes.mostProbable({{y: [3, 4]}}, {TWO})": None,
    },
    "numbers are shown with few digits": {
        "[0, -0, 1234567, 0.12345, 12.345, 1e-5].map(shapes.number).join(' ')": "0 0 1,234,567 0.123 12.35 1.0e-5",
        "[-1013.25, 123456.7, 3.4e38, NaN, -1/0].map(shapes.number).join(' ')": "-1,013.3 123,457 3.4e+38 – –",
    },
    "the curl command fits the model's inputs": {
        f"/^curl http:..h:1.base.v1.models.m.streams.first.step /.test({CURL_LINE})": True,
        f"""{CURL_LINE}.includes(`-d '{{"inputs":{{"x":[0,0],"on":false}}}}'`)""": True,
        f"{CURL_LINE}.includes('authorization: Bearer')": True,
    },
    "the metrics of a model are parsed, and quantiles interpolated": {
        f"metrics.read({METRICS}, 'm')": {
            "process": 1.7e9,
            "replays": 4,
            "conflicts": 2,
            "refusals": {"bad_input": 3},
            "buckets": [[0.001, 50], [0.002, 100], [None, 100]],  # JSON has no infinity
        },
        f"metrics.quantile(metrics.read({METRICS}, 'm').buckets, 0.75).toFixed(4)": "0.0015",
        "Number.isNaN(metrics.quantile([[0.1, 0], [Infinity, 0]], 0.5))": True,
        "metrics.since([[1, 5], [2, 9]], [[1, 4], [2, 6]])": [[1, 1], [2, 3]],
        "metrics.since([[1, 5], [2, 9]], undefined)": [[1, 0], [2, 0]],
    },
    "the numbers of replicas behind one address are added, of refusals those since the scrape before": {
        replicas("""all.add(scrape(1, 16, 100, 0), 0); all.add(scrape(2, 13, 50, 0), 2);
                all.add(scrape(1, 17, 104, 0), 4); all.add(scrape(2, 13, 51, 0), 6);
                return [all.total('replays'), all.recent(6)[0][1]];"""): [30, 5],
        replicas("""all.add(scrape(1, 0, 100, 0), 0); all.add(scrape(1, 0, 100, 0), 2);
                return Number.isNaN(metrics.quantile(all.recent(2), 0.5));"""): True,
        replicas("""return [all.add(scrape(1, 0, 0, 5), 0), all.add(scrape(2, 0, 0, 7), 2),
                all.add(scrape(1, 0, 0, 8), 4)];"""): [{}, {}, {"bad_input": 3}],
    },
    "rows are kept in order, and a reset and lost messages break the line": {
        keep("1, [], [{}]", "3, [], [{}, {}]"): [[1, 1], [2, 2], [3, 3]],
        keep("7, [], [{}]", "1, [], [{}]"): [[1, 7], [2, None], [3, 1]],
        keep("7, [], [{}]", "9, [], [{}]"): [[1, 7], [2, None], [3, 9]],
        keep("1000, [], Array(1000).fill({})"): [[at, at] for at in range(701, 1001)],
        """(() => { const s = new streams.Streams().get('a');
                s.addRows(7, [], [{}]); s.addRows(1, [], [{}]); s.addRows(5, [], [{}]); s.addRows(4, [], [{}]);
                return s.rows.map(r => r.mark || '').join('|'); })()""": "|reset||3 not received||reset to step 3|",
        """(() => { const all = new streams.Streams(), [a, b] = [all.get('a'), all.get('b')];
                a.addRows(3, [], [{}, {}, {}]); b.inheritFrom(a, 2); b.addRows(3, [], [{}]);
                return b.rows.map(r => [r.step, r.mark]); })()""": [[1, ""], [2, "fork of a"], [3, ""]],
        """(s => [s.recordCommit(5, [{}]), s.recordCommit(9, [{}]), s.recordCommit(1, [{}]),
                s.recordCommit(4, [{}, {}, {}])])(new streams.Streams().get('a'))""": [1, 4, 1, 3],
    },
    "a stream shows its last known row until an event arrives, and is gone once it is not listed": {
        stored(""): [[1, 7]],
        stored("s.addRows(8, [], [{}])"): [[1, 7], [2, 8]],
        stored("s.addRows(7, [], [{}])"): [[1, 7]],
        stored("s.setStored(2, {y: [0]})"): [[1, 7], [2, None], [3, 2]],
        stored("s.setStored(0, null); s.setStored(0, null); s.addRows(1, [], [{}])"): [[1, 7], [2, None], [3, 1]],
        """(() => { const all = new streams.Streams();
                all.list({streams: [{stream: 'a', step: 1}, {stream: 'b', step: 2}], cursor: null});
                all.list({streams: [{stream: 'b', step: 2}], cursor: null});
                return [...all.byName.keys()]; })()""": ["b"],
    },
    "of streams that are idle only the newest are kept": {
        """(() => { const all = new streams.Streams();
                for (let i = 0; i < 10_500; i += 1) {
                    const one = all.get(`s${i}`);
                    one.recordCommit(1, [{}]);
                    one.addRows(1, [{}], [{}]);
                    one.seenAt -= i < 10_490 ? 20_000 - i : 0;
                }
                all.trim(['s0']);
                const has = (name) => all.byName.get(name)?.rows.length ?? null;
                const kept = ['s0', 's1', 's9000', 's10300', 's10499'].map(has);
                return String([all.byName.size, ...kept]); })()""": "10011,1,,0,1,1",
    },
    "a forecast starts at its row, and one from before a reset is not drawn": {
        forecast_after(""): [
            [1, 2, [{"middle": [6, 1, 2], "low": [6, 0, 1], "high": [6, 2, 3]}, None]],
            # The first prediction is the input after the next.
            [1, 2, [{"middle": [None, None, 1], "low": [None, None, 0], "high": [None, None, 2]}, None]],
        ],
        forecast_after("s.addRows(8, [], [{}])") + "[0][0]": 1,
        forecast_after("s.addRows(1, [], [{}])"): [None, None],
    },
    "a norm covers all numbers of a state, and at most eight outputs are listed by name": {
        "stream_status.norm([[3, 0], [0, 4]])": 5,
        "stream_status.norm([true, false])": 1,
        f"stream_status.inWords({TWO}[0], [0.25, 0.75])": "sit 0.250   stand 0.750",
        "stream_status.inWords({name: 'y', shape: []}, [7])": "7",
        "stream_status.inWords({name: 'y', shape: [20]}, Array(20).fill(1)).endsWith('y 7 1 … (20)')": True,
    },
    "a trend keeps the newest predictions, and the stream that changed most has the largest change": {
        trends("return trend((i) => i, 70).lines[0];"): list(range(10, 70)),
        trends("""const jump = (to) => trend(i => i < 45 ? 0 : to);
                return changes([trend(() => 1), jump(2), jump(1), new Trend()]);"""): [0, 1, 0.5, 0],
    },
    "silences are drawn as parts of the longest one, and alarms sorted by severity and then by their time": {
        f"alerts.silences({json.dumps(SILENCES)}.map(([kind, at]) => ({{kind, at}})), 100)": [1, None, 0.5, 0],
        "alerts.silences([], 100)": [],
        f"alerts.mostUrgent({json.dumps(KINDS)}.map(([kind, at]) => ({{kind, at}}))).map(({{at}}) => at)": [
            2,
            1,
            3,
            5,
            9,
        ],
        f"alerts.mostUrgent({json.dumps(SEVERITIES)}.map(([severity, at]) => "
        "({kind: 'when', severity: severity ?? undefined, at}))).map(({at}) => at)": [6, 5, 2, 1, 9],
        "alerts.sentence({kind: 'refused', step: 4, code: 'non_finite'})": "refused after step 4: non_finite",
    },
    "the tick marks of an axis have different texts": {
        "shapes.tickTexts([0, 0.5, 1], 0.5)": ["0", "0.5", "1"],
        "shapes.tickTexts([0, 0.25, 0.5], 0.25)": ["0", "0.25", "0.5"],
        "shapes.tickTexts([1013.2, 1013.4], 0.2)": ["1,013.2", "1,013.4"],
        "shapes.tickTexts([-20000, 0], 20000)": ["-20,000", "0"],
        "shapes.tickTexts([0, 1e-9, 2e-9], 1e-9)": ["0", "1.0e-9", "2.0e-9"],
        "shapes.tickTexts([0, 2.5e8], 2.5e8)": ["0", "2.5e+8"],
        "shapes.tickTexts([1700000000, 1700000010], 10)": ["1,700,000,000", "1,700,000,010"],
    },
    "settings that differ from the defaults are in the address": {
        "address.addressOf({model: 'm', stream: 'a b', axis: 'steps', last: '100'})": "#model=m&stream=a+b&last=100",
        "String(new URLSearchParams(address.readAddress('#model=m&stream=a+b&axis=time')))": (
            "model=m&stream=a+b&search=&view=streams&compare=&field=&align=newest&truth=on"
            "&axis=time&last=300&forecast=0"
        ),
    },
    "a chart as CSV has step, time and named values, and columns are found by name in whatever order": {
        """chart_file.csvOf([{step: 3, time: 0, inputs: {x: [1, 2]}, outputs: {y: [0.5]}}, {step: null}],
        shapes.seriesOf([{name: 'x', shape: [2], labels: ['a, left', 'b']}]).series,
        shapes.seriesOf([{name: 'y', shape: [1], unit: 'mm'}]).series)""": (
            'step,time,"a, left",b,y (mm)\n3,1970-01-01T00:00:00.000Z,1,2,0.5\n'
        ),
        inputs_of('n;"b";note;a\n7;2.5;"x ""y""";1\n'): {"x": [1, 2.5], "n": 7},
    },
    "the ground truth of a prediction is what came after it, also timesteps ahead, unless it is of logits": {
        # (x - offset) / scale; the class that came
        f"truth.pairsOf({MOVES}).map((pair, i) => truth.fedBack(pair, [[4, 5], [2]][i]))": [[2, 2], [0, 0, 1]],
        f"""(() => {{ const one = new truth.Truth(); one.setModel({AHEAD});
            return one.of('s', [1, 2, 3].map((step) => ({{step, inputs: {{x: [10 * step]}}}})))
                .map((found) => found?.y.join(' ') ?? null); }})()""": ["20 30", "30 NaN", None],
        f"truth.pairsOf({ON_LOGITS})": [],
    },
    "a file has the ground truth by columns and steps": {
        truth_of("step,p,note\n4,b,-\n7,d,-"): [[4, {"p": [0, 1, 0]}], [7, {"p": [0, 0, 1]}]],
        truth_of("a,b,d\n0.25,0.5,0.25"): [[1, {"p": [0.25, 0.5, 0.25]}]],
        truth_of("y[1],y[0]\n5,6\n7,8"): [[1, {"y": [6, 5]}], [2, {"y": [8, 7]}]],
    },
    "the error is the mean difference or what the right class lacks": {
        "truth.errorOf({y: [1, 4]}, {y: [2, 2]})": 1.5,
        "truth.errorOf({p: [0.25, 0.75]}, {p: [1, 0]})": 0.75,
        "truth.errorOf({y: [1, 4]}, {y: [NaN, 2]})": 2,
        "truth.errorOf({y: [1, 4]}, null)": None,
    },
    "a missing value interrupts the lines, and rows before a reset are not compared": {
        f"comparison.linesOf([{rows(1, -2, 3)}], {Y}, 'newest', 300).lines[0].slice(-3)": [10, None, 30],
        f"[...comparison.currentRows({rows(5, 6, 0, 1, 0, 3)}.rows).keys()]": [3, 1],
    },
}
"""By fact, expressions with their values."""


@pytest.mark.parametrize("fact", FACTS)
def test_the_modules_have_the_values(evaluate: Evaluate, fact: str) -> None:
    for script, expected in FACTS[fact].items():
        assert evaluate(script) == expected, script


REFUSED = {
    inputs_of("a,c\n1,2"): "columns a, b; the file has a, c",
    inputs_of("a,b,n\n1,x,1"): "Row 1, column b: “x” is not a number",
    inputs_of("a,b,n\n1,,1"): "Row 1, column b: “” is not a number",
    inputs_of("a,b,n\n1,2,1.5"): "Row 1, column n: “1.5” is not a whole number",
    **{
        inputs_of(f"a,b,n\n1,{cell},1"): f"“{cell}” is not a number"
        for cell in ("+5", ".5", "5.", "007", "4_2", "\uff15")
    },
    inputs_of("a,b,n\n1,2,+1"): "“+1” is not a whole number",
    inputs_of("a,b,n\n1,2,1\n1,2"): "Row 2 has 2 cells; the header has 3",
    inputs_of("a,b,n"): "no rows",
    inputs_of(""): "empty",
    truth_of("z\n1"): "No column has the name of a prediction: y, y 0, y 1, p, a, b, d; the file has z.",
    truth_of("step,p\n1,x"): "Row 1, column p: “x” is none of a, b, d",
    truth_of("step,p\n1.5,a"): "Row 1, column step: “1.5” is not a whole number",
}


def test_a_csv_that_does_not_fit_is_refused_with_the_place(evaluate: Evaluate) -> None:
    for script, words in REFUSED.items():
        assert words in evaluate(f"(() => {{ try {{ {script}; }} catch (problem) {{ return problem.message; }} }})()")


def test_the_interval_of_samples_is_that_of_their_quantiles(evaluate: Evaluate) -> None:
    samples = np.random.default_rng(0).normal(size=(40, 3, 2))
    low, middle, high = np.quantile(samples, [0.1, 0.5, 0.9], axis=0)
    found = evaluate(f"forecast.fans({samples.tolist()})")

    assert len(found) == 2
    for element, fan in enumerate(found):
        assert fan["low"] == pytest.approx(low[:, element])
        assert fan["middle"] == pytest.approx(middle[:, element])
        assert fan["high"] == pytest.approx(high[:, element])


def test_texts_of_marks_do_not_overlap_and_end_inside_the_chart(evaluate: Evaluate) -> None:
    script = """(() => { const ctx = new OffscreenCanvas(500, 100).getContext('2d'), drawn = [];
        ctx.textAlign = 'right'; // as uPlot leaves it
        ctx.fillText = (text, x) => drawn.push([text, x, x + ctx.measureText(text).width, ctx.textAlign]);
        const chart = { ctx, bbox: { left: 10, top: 10, width: 400, height: 50 }, valToPos: (at) => at };
        const rows = [{ at: 250, text: 'reset' }, { at: 410, text: 'fork of watch-1' }];
        marks.drawMarks(chart, rows, { ink: '#000', font: '11px sans-serif' });
        return drawn; })()"""
    (reset, _, reset_end, _), (fork, fork_start, fork_end, align) = evaluate(script)

    assert (reset, fork, align) == ("reset", "fork of watch-1", "left")
    assert reset_end < fork_start
    assert fork_end <= 410.5


def test_a_raised_alarm_is_listed_and_only_a_silence_has_a_bar(page: Page, files: str) -> None:
    page.open(f"{files}/index.html")
    page.evaluate("import('/cards/alerts.js').then((found) => { globalThis.alerts = found; })")
    script = """(async () => {
        const parts = {panel: document.createElement('div'), facts: document.createElement('p'),
            body: document.createElement('div')};
        const now = Date.now() / 1000;
        const found = [{id: '1', rule: 'quiet', stream: 'p1', kind: 'silent', step: 4, at: now - 90},
            {id: '2', rule: 'high', stream: 'p2', kind: 'when', step: 9, at: now - 5}];
        const fetched = globalThis.fetch;
        globalThis.fetch = async () => new Response(JSON.stringify({alerts: found, cursor: null}));
        const card = new alerts.AlertCard(parts, () => undefined);
        card.setModel({name: 'm'});
        await card.refresh();
        globalThis.fetch = fetched;
        return [parts.facts.textContent, parts.panel.hidden, ...[...parts.body.querySelectorAll('li')].map((item) =>
            [item.textContent, item.querySelector('.silence')?.style.getPropertyValue('--length') ?? null])];
    })()"""

    counted, hidden, high, silent = page.evaluate(script)

    assert (counted, hidden) == ("2 raised", False)
    assert silent[0].startswith("quietp1silent after step 4")
    assert silent[1] == "1"
    assert high[1] is None


def test_a_service_that_has_not_listed_its_streams_yet_is_not_reported_as_empty(page: Page, files: str) -> None:
    page.open(f"{files}/index.html")
    script = """Promise.all(['stream_list', 'live_streams'].map((name) => import(`/streams/${name}.js`))).then(
        ([{StreamList}, {Streams}]) => {
            const part = () => document.createElement('div');
            const list = new StreamList({list: part(), note: part(), more: part(), search: {text: ''}});
            const streams = new Streams(), notes = [];
            for (const page of [null, {streams: [], cursor: null}, {streams: [{stream: 'a', step: 1}], cursor: null}]) {
                if (page) streams.list(page);
                list.render(streams, [], null);
                notes.push(list.note.textContent);
            }
            return notes; })"""

    assert page.evaluate(script) == ["Loading the streams …", "No streams yet.", ""]


def test_the_line_of_steps_per_second_fills_its_width_after_twelve_seconds(page: Page, files: str) -> None:
    page.open(f"{files}/index.html")
    for seconds, first in ((6, 65), (20, 0), (90, 0)):
        script = f"""import('/tiles.js').then(({{Tiles}}) => {{ let second = 0;
            performance.now = () => 1000 * second;
            const tiles = new Tiles();
            for (; second <= {seconds}; second += 1) {{ tiles.count(second); tiles.drawRate(true); }}
            return document.getElementById('rate-line').getAttribute('points'); }})"""
        places = [float(point.split(",")[0]) for point in page.evaluate(script).split(" ")]

        assert (round(places[0]), places[-1], len(places)) == (first, 120, min(seconds, 60))


def test_streams_are_compared_by_their_newest_timesteps_or_by_step(evaluate: Evaluate) -> None:
    two = f"[{rows(1, 2, 3)}, {rows(7, 8)}]"
    newest = evaluate(f"comparison.linesOf({two}, {Y}, 'newest', 300)")
    by_step = evaluate(f"comparison.linesOf({two}, {Y}, 'step', 300)")

    assert newest["positions"] == list(range(-19, 1))
    assert [line[-3:] for line in newest["lines"]] == [[10, 20, 30], [None, 70, 80]]
    assert by_step["positions"] == list(range(1, 9))
    assert by_step["lines"] == [[10, 20, 30, *[None] * 5], [*[None] * 6, 70, 80]]


def test_the_page_without_a_service_shows_an_error(page: Page, files: str) -> None:
    page.open(f"{files}/index.html")
    page.evaluate("import('/app.js')")  # a plain web server serves these files at /, not under /dashboard/

    assert page.wait_for("/does not respond/.exec(document.getElementById('state').textContent)?.[0]")
    assert "since" in page.text("#stopped")
