"""docs/operations.md says what is true: its list of metrics is the one that nodes tell."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from zkd.holder.tally import KERNELS_MAX, Tally
from zkd.net.metrics import METRICS, exposition, family

TEXT = (Path(__file__).parent.parent / "docs/operations.md").read_text()


def test_every_metric_is_in_the_list_and_no_other() -> None:
    listed = re.findall(r"^\| `(zkd_\w+)` \| (\w+) \| (.+) \|$", TEXT, re.MULTILINE)
    assert listed == [(name, metric.kind, metric.help) for name, metric in METRICS.items()]


def test_names_say_what_they_are() -> None:
    for name, metric in METRICS.items():
        assert re.fullmatch(r"zkd_[a-z_]+[a-z]", name)
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert metric.help.endswith("."), name


def test_a_family_stands_together_under_its_help_and_its_type() -> None:
    tally = Tally()
    for run_s in (0.0005, 0.5, 10_000.0):
        tally.count("k", "done")
        tally.ran("t", "k", "done", 1, 0.002, run_s)
    text = exposition([("zkd_slots", {}, 2.0), *tally.samples(), ("zkd_slots_used", {}, 1.0)])
    lines = text.splitlines()
    assert lines.index("zkd_slots 2") == lines.index("# TYPE zkd_slots gauge") + 1
    start = lines.index("# TYPE zkd_task_run_seconds histogram")
    assert lines[start + 1 : start + 10 + 2] == [
        *(
            f'zkd_task_run_seconds_bucket{{kernel="k",le="{bound}"}} {count}'
            for bound, count in zip(
                ("0.001", "0.01", "0.1", "1", "10", "60", "600", "3600", "+Inf"),
                (1, 1, 1, 2, 2, 2, 2, 2, 3),
                strict=True,
            )
        ),
        'zkd_task_run_seconds_sum{kernel="k"} 10000.5005',
        'zkd_task_run_seconds_count{kernel="k"} 3',
    ]
    families = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert families == sorted(set(families))
    assert all(f"# HELP {name} {METRICS[name].help}" in lines for name in families)


def test_no_digit_is_lost_and_no_text_breaks_a_line() -> None:
    text = exposition(
        [
            ("zkd_segments_repaired_bytes_total", {}, 123_456_789_012_345),
            ("zkd_loop_lag_seconds", {}, 0.1 + 0.2),
            ("zkd_uptime_seconds", {}, math.inf),
            ("zkd_tasks_total", {"kernel": 'a"b\\c\nd'}, 1),
        ]
    )
    assert "zkd_segments_repaired_bytes_total 123456789012345\n" in text
    assert f"zkd_loop_lag_seconds {0.1 + 0.2!r}\n" in text
    assert r'zkd_tasks_total{kernel="a\"b\\c\nd"} 1' in text
    assert family("zkd_task_wait_seconds_bucket") == "zkd_task_wait_seconds"
    assert family("zkd_dashboard_looks_count") == "zkd_dashboard_looks_count"  # no histogram, so not a part of one


def test_metrics_of_shadows_are_described_by_those_they_are_like() -> None:
    text = exposition(
        [
            *((f"zkd_shadow_predict_seconds_{part}", labels, 1) for part, labels in (("bucket", {"le": "+Inf"}),)),
            ("zkd_shadow_predict_seconds_count", {}, 1),
            ("zkd_shadow_serving_processes", {}, 1),
        ]
    )
    assert "# TYPE zkd_shadow_predict_seconds histogram\n" in text
    assert "# HELP zkd_shadow_serving_processes Of shadows: processes that answer requests and are alive.\n" in text


def test_kernels_beyond_some_share_a_series() -> None:
    tally = Tally()
    for number in range(KERNELS_MAX + 50):
        tally.ran("t", f"k{number}", "done", 1, 0.0, 0.0)
    counts = {
        labels["kernel"]: value for name, labels, value in tally.samples() if name == "zkd_task_run_seconds_count"
    }
    assert (len(counts), counts["other"]) == (KERNELS_MAX + 1, 50)


def test_promtool_finds_no_fault() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("NOT RUN: there is no promtool here. On Debian: apt-get install prometheus")
    tally = Tally()
    tally.count("k", "done")
    tally.ran("t", "k", "done", 1, 0.0, 0.0)
    once = {
        f"{name}_bucket" if metric.kind == "histogram" else name: metric
        for name, metric in METRICS.items()
        if not name.startswith("zkd_task")
    }
    samples = [(name, {}, 1.0) for name, metric in once.items() if metric.kind != "histogram"]
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=exposition([*samples, *tally.samples()]),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
