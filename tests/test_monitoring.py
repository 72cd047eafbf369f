"""Promises of docs/monitoring: rules and dashboard name metrics that there are, and alerts fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from zkd.net.metrics import METRICS, family

MONITORING = Path(__file__).parent.parent / "docs/monitoring"
RULES = MONITORING / "zkd.rules.yml"
BOARD: dict[str, Any] = json.loads((MONITORING / "grafana.json").read_text())
EXPRESSIONS = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]


def promtool(*arguments: object, cwd: Path | None = None) -> None:
    binary = shutil.which("promtool")
    if binary is None:
        pytest.skip("NOT RUN: there is no promtool here. On Debian: apt-get install prometheus")
    command = [binary, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("text", [RULES.read_text(), *EXPRESSIONS], ids=lambda text: text[:40])
def test_what_is_asked_for_is_told(text: str) -> None:
    code = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    named = set(re.findall(r"\bzkd_\w+", code))
    assert named
    assert {family(name) for name in named} <= METRICS.keys()


def test_alerts_say_what_to_do() -> None:
    text = RULES.read_text()
    assert text.count("- alert:") == text.count("summary:") == text.count("next:") == text.count("severity:")


def test_panels_fill_the_board_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        assert panel["description"].endswith(".")
        taken |= cells
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


def test_prometheus_takes_the_rules_and_what_the_board_asks(tmp_path: Path) -> None:
    promtool("check", "rules", RULES)
    plain = [each.replace("$__rate_interval", "1m").replace("$job", ".*") for each in EXPRESSIONS]
    rules = [{"record": f"zkd:panel:{number}", "expr": each} for number, each in enumerate(plain)]
    file = tmp_path / "board.yml"
    file.write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}))  # JSON is YAML
    promtool("check", "rules", file)


FIRES = """
rule_files: [zkd.rules.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'zkd_leader{instance="a"}', values: '1 1 0 0 0 0 0 1 1'}
      - {series: 'zkd_leader{instance="b"}', values: '0 0 0 0 0 0 0 0 0'}
    alert_rule_test:
      - {eval_time: 1m, alertname: ZkdNobodyLeads, exp_alerts: []}
      - {eval_time: 8m, alertname: ZkdNobodyLeads, exp_alerts: []}
    promql_expr_test:
      - {expr: 'count(ALERTS{alertname="ZkdNobodyLeads",alertstate="firing"})', eval_time: 5m,
         exp_samples: [{value: 1}]}
  - interval: 1m
    input_series:
      - {series: 'zkd_tasks_total{kernel="bad",status="failed"}', values: '0+6x40'}
      - {series: 'zkd_tasks_total{kernel="bad",status="done"}', values: '0+6x40'}
      - {series: 'zkd_tasks_total{kernel="good",status="failed"}', values: '0+1x40'}
      - {series: 'zkd_tasks_total{kernel="good",status="done"}', values: '0+60x40'}
    promql_expr_test:
      - expr: 'count by (kernel) (ALERTS{alertname="ZkdTasksFail",alertstate="firing"})'
        eval_time: 30m
        exp_samples: [{labels: '{kernel="bad"}', value: 1}]
  - interval: 1m
    input_series:
      - {series: 'zkd_leader_tasks{instance="a"}', values: '90000x60'}
      - {series: 'zkd_tasks_total{kernel="k",status="done"}', values: '0+600x60'}
    promql_expr_test:
      - {expr: 'count(ALERTS{alertname="ZkdTasksPileUp",alertstate="firing"})', eval_time: 50m,
         exp_samples: [{value: 1}]}
  - interval: 1m
    input_series:
      - {series: 'zkd_leader_tasks{instance="a"}', values: '3000x60'}
      - {series: 'zkd_tasks_total{kernel="k",status="done"}', values: '0+600x60'}
    promql_expr_test:
      - {expr: 'count(ALERTS{alertname="ZkdTasksPileUp"})', eval_time: 50m, exp_samples: []}
"""


def test_alerts_fire_when_they_should_and_not_else(tmp_path: Path) -> None:
    shutil.copy(RULES, tmp_path)
    file = tmp_path / "tests.yml"
    file.write_text(FIRES)
    promtool("test", "rules", file, cwd=tmp_path)
