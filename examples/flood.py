"""Will the river flood in the next two days? Forecast each morning, from yesterday's state: flood.py [PICTURE.svg]."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
from live import compare, live
from river_flow import AHEAD, STREAM, build, forecast, keras, simulate

from stepwell.addons.charts import line_chart

MORNINGS = (96, 120, 144)


def main() -> None:
    keras.utils.set_random_seed(3)
    model, (rain, flow) = build(), simulate(200, np.random.default_rng(3))
    model.compile(keras.optimizers.Adam(5e-3), "mse")
    model.fit([rain[:, :-1], flow[:, :-1]], flow[:, 1:], batch_size=10, epochs=25, verbose=0)
    rain, flow = (series[0] for series in simulate(1, np.random.default_rng(30)))
    lines, forecasts, whole = {"flow": flow[:193, 0].tolist()}, [], []
    with live(model) as http:
        for before, now in pairwise((0, *MORNINGS)):
            hours = {"rain": rain[before:now].tolist(), "flow": flow[before:now].tolist()}
            http.post(f"{STREAM}/steps", json={"inputs": hours, "return": "none"})  # what came since yesterday
            ahead = forecast(http, f"forecast-{now}", rain[now : now + AHEAD], flow[now])
            print(f"hour {now}: at most {ahead.max():.2f}, at hour {now + 1 + ahead.argmax()}")
            lines[f"at hour {now}"] = [*[np.nan] * (now + 1), *ahead[:, 0].tolist(), *[np.nan] * (MORNINGS[-1] - now)]
            given = np.concatenate([flow[: now + 1], ahead[:-1]])
            whole.append(model.predict([rain[None, : now + AHEAD], given[None]], verbose=0)[0, now:])
            forecasts.append(ahead)
    print(f"it was {flow[:193].max():.2f}, at hour {flow[:193].argmax()}")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(line_chart("flow, and its forecasts", lines))
    compare(np.concatenate(forecasts), np.concatenate(whole))


if __name__ == "__main__":
    main()
