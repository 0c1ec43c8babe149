"""Alert rules and dashboard: they ask for metrics that are served, by labels that those have, and alerts fire when they should.

Whether they fire is promtool's word: tests/unit/rules_test.yaml has the histories.
"""

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.observer.metrics import METRICS, Metric
from runtime.telemetry.command import rules
from runtime.telemetry.dashboard import dashboard

CASES = Path(__file__).with_name("rules_test.yaml")
SERVED: dict[str, Metric] = {
    name: metric
    for metric in METRICS
    for name in (
        [f"{metric.name}_{part}" for part in ("bucket", "count", "sum")]
        if metric.kind == "histogram"
        else [metric.name]
    )
}
OURS = re.compile(r"\b(?:raycade|llm)_\w+")


def promtool(*words: str) -> "subprocess.CompletedProcess[str]":
    found = shutil.which("promtool")
    if found is None:
        if os.environ.get("RAYCADE_TEST_PROMETHEUS") == "require":
            pytest.fail("promtool is not installed, and RAYCADE_TEST_PROMETHEUS=require")
        pytest.skip("needs promtool, of Debian's package prometheus")
    return subprocess.run([found, *words], capture_output=True, text=True, timeout=60)


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(rules())["groups"] for rule in group["rules"] if "alert" in rule]


def queries() -> list[str]:
    """What the dashboard asks, as Grafana sends it."""
    asked = [target["expr"] for panel in json.loads(dashboard())["panels"] for target in panel.get("targets", ())]
    return [expr.replace("$__rate_interval", "1m") for expr in asked]


def test_every_alert_has_a_history_in_which_it_fires_and_one_in_which_it_does_not(tmp_path: Path) -> None:
    checked = promtool("check", "rules", _written(rules(), tmp_path))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    told = promtool("test", "rules", str(CASES))
    assert told.returncode == 0, told.stdout + told.stderr
    fires: Counter[tuple[str, bool]] = Counter()
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        for each in case["promql_expr_test"]:
            (name,) = re.findall(r'alertname="(\w+)"', each["expr"])
            fires[name, bool(each["exp_samples"])] += 1
    assert set(fires) == {(alert["alert"], firing) for alert in alerts() for firing in (True, False)}


def test_what_an_alert_says_is_whole(tmp_path: Path) -> None:
    """Its text has no template that fails, and no value that is missing: promtool shows what it would say."""
    cases = yaml.safe_load(CASES.read_text())
    cases["rule_files"] = [str((CASES.parent / cases["rule_files"][0]).resolve())]
    for case in cases["tests"]:
        (each,) = case.pop("promql_expr_test")
        (name,) = re.findall(r'alertname="(\w+)"', each["expr"])
        expected = {"exp_labels": {"nobody": "is called so"}} if each["exp_samples"] else None
        test = {"alertname": name, "eval_time": each["eval_time"], "exp_alerts": [expected] if expected else []}
        case["alert_rule_test"] = [test]
    tested = promtool("test", "rules", _written(yaml.safe_dump(cases), tmp_path))
    told = tested.stdout + tested.stderr
    texts = re.findall(r'(?:summary|description)="((?:[^"\\]|\\.)*)"', told)
    assert len(texts) >= 2 * len({alert["alert"] for alert in alerts()}), told
    assert not [text for text in texts if "<" in text or "%!" in text or "{{" in text or "NaN" in text]


def test_rules_and_dashboard_ask_for_what_is_served() -> None:
    for expr in (*(alert["expr"] for alert in alerts()), *queries()):
        assert OURS.search(expr) or "raycade:" in expr
        for name in OURS.findall(expr):
            assert name in SERVED, f"{name} is not in the table of metrics"
        labels = {label for group in re.findall(r"by \(([^)]*)\)", expr) for label in group.split(", ")}
        known = {label for name in OURS.findall(expr) for label in SERVED[name].labels}
        if known:
            assert labels <= known | {"job", "instance", "le"}, expr


def test_the_dashboard_shows_every_metric_and_its_queries_are_promql(tmp_path: Path) -> None:
    asked = queries()
    for metric in METRICS:
        name = metric.name + ("_bucket" if metric.kind == "histogram" else "")
        assert any(re.search(rf"\b{name}\b", expr) for expr in asked), f"{metric.name} has no panel"
    group = {
        "name": "g",
        "rules": [{"record": f"asked:{number}", "expr": expr} for number, expr in enumerate(asked)],
    }
    checked = promtool("check", "rules", _written(yaml.safe_dump({"groups": [group]}), tmp_path))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_panels_do_not_overlap_and_each_has_a_number_of_its_own() -> None:
    taken: set[tuple[int, int]] = set()
    panels = json.loads(dashboard())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def _written(text: str, folder: Path) -> str:
    file = folder / "written.yaml"
    file.write_text(text)
    return str(file)
