"""The alerts and the dashboard are what the script writes, and they cover every metric."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # comes with uvicorn[standard], without types

from scripts.observability.__main__ import FOLDER, files
from scripts.observability.alerts import ALERTS
from scripts.observability.metrics import definitions, used_in
from tests.deploy.prometheus import PROMTOOL

MONITORING = (FOLDER.parents[1] / "docs/monitoring.md").read_text()
DASHBOARD = json.loads((FOLDER / "grafana/dashboards/stepwell.json").read_text())
AMTOOL = shutil.which("amtool")
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (apt install prometheus)")


def test_the_generated_files_are_what_the_script_writes() -> None:
    written = files()

    assert {path: path.read_text() for path in written} == written, "run: python -m scripts.observability"


def test_every_metric_is_in_a_panel() -> None:
    shown = {metric.name for panel in PANELS for metric in used_in(target["expr"] for target in panel["targets"])}

    assert shown == {metric.name for metric in definitions().values()}


def test_a_query_with_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no metrics \['stepwell_stepz_total'\]"):
        used_in(["rate(stepwell_stepz_total[1m])"])


def test_panels_do_not_overlap() -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        at = panel["gridPos"]
        return {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}

    taken = [cell for panel in DASHBOARD["panels"] for cell in cells(panel)]

    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24


def test_the_description_of_a_panel_is_that_of_its_metrics() -> None:
    without = [panel["title"] for panel in PANELS if not panel["description"]]

    assert without == ["Replicas", "Alerts"]  # `up` and `ALERTS` are of Prometheus itself


def test_the_page_on_monitoring_lists_every_alert_with_its_limit() -> None:
    table = MONITORING.split("<!-- alerts -->")[1].split("<!-- /alerts -->")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in table.splitlines() if line.startswith("| `")]

    assert rows == [[f"`Stepwell{alert.name}`", alert.severity, alert.wait] for alert in ALERTS]


@pytest.mark.slow
@needs_promtool
def test_every_alert_fires_on_its_fault_and_none_without() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(FOLDER / "rules.test.yml"))


def test_every_alert_is_in_the_tests_of_the_rules() -> None:
    expected = re.findall(r"Stepwell\w+", (FOLDER / "rules.test.yml").read_text())

    assert {f"Stepwell{alert.name}" for alert in ALERTS} == set(expected)


@needs_promtool
def test_prometheus_accepts_its_configuration(tmp_path: Path) -> None:
    config = (FOLDER / "prometheus.yml").read_text().replace("/etc/prometheus/metrics-key", str(FOLDER / "no-key"))
    file = tmp_path / "prometheus.yml"
    file.write_text(config.replace("/etc/prometheus/", f"{FOLDER}/"))

    assert "SUCCESS" in promtool("check", "config", str(file))


@pytest.mark.skipif(AMTOOL is None, reason="amtool is not installed (apt install prometheus-alertmanager)")
def test_alertmanager_accepts_its_configuration() -> None:
    done = subprocess.run(
        [str(AMTOOL), "check-config", str(FOLDER / "alertmanager.yml")], capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_alertmanager_only_inhibits_alerts_that_exist() -> None:
    named = re.findall(r"Stepwell(\w+)", (FOLDER / "alertmanager.yml").read_text())

    assert named
    assert set(named) <= {alert.name for alert in ALERTS}


def test_grafana_gets_the_data_source_and_the_folder_of_the_dashboard() -> None:
    provisioning = FOLDER / "grafana/provisioning"
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((provisioning / "dashboards/stepwell.yml").read_text())["providers"]
    interval = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["global"]["scrape_interval"]
    compose = (FOLDER.parents[1] / "docker-compose.yml").read_text()

    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == interval
    [exemplar] = source["jsonData"]["exemplarTraceIdDestinations"]
    assert (exemplar["name"], exemplar["url"]) == ("trace_id", "${TRACES_URL}$${__value.raw}")
    assert "TRACES_URL: ${TRACES_URL:-" in compose
    assert "--enable-feature=exemplar-storage" in compose
    assert f"./docker/observability/grafana/dashboards:{provider['options']['path']}:ro" in compose


def promtool(*arguments: str) -> str:
    done = subprocess.run([str(PROMTOOL), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
