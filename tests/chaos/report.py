"""A run in figures, as text, as JSON and as a plot: out/chaos/summary.txt, summary.json, throughput.png."""

from __future__ import annotations

import itertools
import json
from bisect import bisect_left, bisect_right
from collections import Counter

from tests.chaos.conductor import CONVERGE_S, Outcome


def write_report(outcome: Outcome) -> str:
    figures = figures_of(outcome)
    directory = outcome.options.directory
    text = text_of(outcome, figures)
    (directory / "summary.txt").write_text(text + "\n")
    (directory / "summary.json").write_text(json.dumps(figures, indent=1) + "\n")
    plot(outcome)
    return text


def figures_of(outcome: Outcome) -> dict[str, object]:
    verdict, audit = outcome.verdict, outcome.audit
    rules = Counter(violation.rule for violation in outcome.violations)
    ends = sorted(ms / 1000 - outcome.ms_at_zero / 1000 for ms in audit.result_ms)
    hits = Counter(blow.fault for blow in outcome.blows if blow.proof)
    missed = Counter(blow.fault for blow in outcome.blows if not blow.proof)
    waits = {blow.fault: 0.0 for blow in outcome.blows if blow.proof}
    for blow in outcome.blows:
        if blow.proof:
            waits[blow.fault] = max(waits[blow.fault], next_end(ends, blow.healed_at))
    took_s = (ends[-1] - outcome.began_at) if ends else 0.0
    return {
        "seed": outcome.options.seed,
        "tasks": verdict.tasks,
        "results": audit.results,
        "statuses": dict(verdict.by_status),
        "submits": dict(verdict.by_outcome),
        "seconds": round(took_s, 1),
        "tasks_per_s": round(len(ends) / took_s, 1) if took_s > 0 else 0.0,
        "tasks_per_s_before_faults": round(outcome.load_before, 1),
        "faults_hit": dict(sorted(hits.items())),
        "faults_hit_total": hits.total(),
        "faults_missed": dict(sorted(missed.items())),
        "lost": rules["lost"],
        "duplicated": rules["duplicated"],
        "stale_writes": rules["stale"],
        "other_violations": rules.total() - rules["lost"] - rules["duplicated"] - rules["stale"],
        "executions": verdict.executions,
        "executions_expected": verdict.expected_executions,
        "reexecution_ratio": round(verdict.executions / max(1, verdict.expected_executions), 4),
        "refused_by_version": audit.refused[-103],
        "refused_no_node": audit.refused[-101],
        "refused_node_exists": audit.refused[-110],
        "reigns": audit.reigns,
        "sessions": audit.sessions,
        "transactions": audit.transactions,
        "longest_wait_after_heal_s": {fault: round(wait, 2) for fault, wait in sorted(waits.items())},
        "longest_gap_s": round(max((b - a for a, b in itertools.pairwise(ends)), default=0.0), 2),
        "truces": len(outcome.truces),
        "longest_wait_in_a_truce_s": round(max((longest_wait(ends, *each) for each in outcome.truces), default=0.0), 2),
        "converged_after_s": None
        if outcome.converged_at is None
        else round(outcome.converged_at - outcome.healed_at, 1),
    }


def next_end(ends: list[float], after: float) -> float:
    """How long after a moment the next task ended; 0 where none was left."""
    at = bisect_right(ends, after)
    return ends[at] - after if at < len(ends) else 0.0


def longest_wait(ends: list[float], since: float, until: float) -> float:
    """The longest time without a result in between."""
    moments = [since, *ends[bisect_right(ends, since) : bisect_left(ends, until)], until]
    return max(b - a for a, b in itertools.pairwise(moments))


def text_of(outcome: Outcome, figures: dict[str, object]) -> str:
    hits = figures["faults_hit"]
    assert isinstance(hits, dict)
    waits = figures["longest_wait_after_heal_s"]
    assert isinstance(waits, dict)
    lines = [
        "",
        f"seed {figures['seed']}: {figures['tasks']} tasks, {figures['results']} results {figures['statuses']} "
        f"in {figures['seconds']} s",
        f"submissions     {figures['submits']}",
        f"throughput      {figures['tasks_per_s_before_faults']} tasks/s before the first fault, "
        f"{figures['tasks_per_s']} on average",
        f"lost            {figures['lost']}",
        f"duplicated      {figures['duplicated']}",
        f"stale writes    {figures['stale_writes']} got through; {figures['refused_by_version']} transactions refused "
        "for their version",
        f"other           {figures['other_violations']} violations",
        f"executions      {figures['executions']}, {figures['executions_expected']} were needed: "
        f"{figures['reexecution_ratio']}",
        f"leaders         {figures['reigns']} reigns, {figures['sessions']} sessions, "
        f"{figures['transactions']} transactions",
        f"longest gap     {figures['longest_gap_s']} s without a result; {figures['longest_wait_in_a_truce_s']} s "
        f"in {figures['truces']} truces, in which nothing was broken",
        f"at rest         {figures['converged_after_s']} s after the last fault (at most {CONVERGE_S:.0f})",
        f"faults          {figures['faults_hit_total']} hit; missed: {figures['faults_missed'] or 'none'}",
    ]
    lines += [
        f"  {name:<28}{count:>5}   next result at most {waits[name]:.1f} s after it healed"
        for name, count in hits.items()
    ]
    return "\n".join(lines)


def plot(outcome: Outcome) -> None:
    """Results per second over the run, with a mark for each fault from hit to heal."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    ends = [ms / 1000 - outcome.ms_at_zero / 1000 - outcome.began_at for ms in outcome.audit.result_ms]
    if not ends:
        return
    step = max(1.0, round(max(ends) / 300))
    buckets = Counter(int(end // step) for end in ends)
    times = range(max(buckets) + 1)
    figure = Figure(figsize=(14, 9))
    axes, marks = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [2, 3]})
    axes.fill_between([t * step for t in times], [buckets[t] / step for t in times], step="post", color="#4878a8")
    axes.set_ylabel("results/s")
    axes.set_title(f"seed {outcome.options.seed}: {outcome.verdict.tasks} tasks, {len(outcome.blows)} faults")
    names = sorted({blow.fault for blow in outcome.blows}, reverse=True)
    for blow in outcome.blows:
        start = blow.hit_at - outcome.began_at
        marks.barh(
            names.index(blow.fault),
            max(blow.healed_at - blow.hit_at, step / 3),
            left=start,
            color="#b04040" if blow.proof else "#c0c0c0",
        )
    marks.set_yticks(range(len(names)), names, fontsize=7)
    marks.set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(outcome.options.directory / "throughput.png", dpi=110)
