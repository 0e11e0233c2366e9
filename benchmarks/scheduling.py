"""What the order of the queue and the choice of device are worth, on public traces, through the ledger's own scripts.

packing      the workload-inflation experiment of the FGD paper (openb trace) for every strategy: packing.py
waiting      two traces, ours against FCFS, EASY and a greedy queue; EASY is a reference of our own: easy.py, waiting.py
dates        how many tasks of the second half of the traces started by their p90, and how wrong the p50 was
adversarial  a stream of small tasks against one big one, for ten simulated minutes
cost         submit and release with 50 shapes and 20 tenants in line: ledger.py

The last line is JSON. Times are simulated, and the same on every machine; only cost is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drawing
import ledger
import packing
import redis
import waiting
from waiting import Dated, Score, Trace

from celery_allocator.model import Strategy
from celery_allocator.simulator import private_server

PARTS = ("packing", "waiting", "dates", "adversarial", "cost")
#: Jobs of a trace that a quick run takes.
_QUICK_JOBS = 2_000
#: AVEbsld of KTH-SP2 as published (SC'15 artifact): EASY, EASY with shortest-first backfill.
_PUBLISHED = {"EASY": 92.58, "EASY, shortest first": 69.41}

Found = dict[str, Any]


def strategies() -> list[Any]:
    """Those that pick devices in ways of their own (``priority`` picks as ``best_fit`` does)."""
    return [strategy for strategy in Strategy if strategy is not Strategy.PRIORITY]


def measure_packing(client: redis.Redis, chosen: list[Any], seeds: int, quick: bool, plots: Path | None) -> Found:
    """GPU allocation of every strategy beside the reference."""
    orders = list(packing.ORDERS)[:1] if quick else list(packing.ORDERS)
    curves = packing.run(client, chosen, range(1, (1 if quick else seeds) + 1), orders, 6 if quick else 1)
    means = {
        key: {at: statistics.fmean(curve[at] for curve in found) for at in packing.READ_AT}
        for key, found in curves.items()
    }
    if plots:
        of_all = {name: found for (name, order), found in curves.items() if order == orders[0]}
        drawing.packing(of_all, packing.REFERENCE, plots)
    print(f"{'GPU allocated, %':36}" + "".join(f"{at:>8} %" for at in packing.READ_AT) + "   worst order (seed 1)")
    found: Found = {f"openb_{at}": {} for at in packing.READ_AT}
    for name in dict.fromkeys(key[0] for key in means):
        ordered = {order: mean for (which, order), mean in means.items() if which == name}
        here = ordered[orders[0]]
        order, worst = min(ordered.items(), key=lambda item: item[1][100])
        print(f"{name:36}" + "".join(f"{here[at]:10.2f}" for at in packing.READ_AT) + f"   {worst[100]:.2f}: {order}")
        for at in packing.READ_AT:
            found[f"openb_{at}"][name] = round(here[at], 2)
        found.setdefault("openb_100_worst_order", {})[name] = round(worst[100], 2)
    for name, (published, again) in packing.REFERENCE.items():
        said = "" if published is None else f"   published {published[0]:.2f}, {published[1]:.2f}"
        print(f"  reference: {name:23}" + "".join(f"{value:10.2f}" for value in again) + said)
    return found


class Runs:
    """The ledger's runs of the traces, each made once whichever part asks for it."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._made: dict[tuple[str, str, bool], tuple[Score, list[Any]]] = {}

    def __call__(self, trace: Trace, how: str, *, stated: bool) -> tuple[Score, list[Any]]:
        key = (trace.name, how, stated)
        if key not in self._made:
            self._made[key] = waiting.ours(self._client, trace, waiting.backfills()[how], stated=stated)
        return self._made[key]


def measure_waiting(traces: list[Trace], runs: Runs, plots: Path | None) -> Found:
    """Bounded slowdown and waits of all schedulers."""
    found: Found = {}
    drawn: dict[str, dict[str, Score]] = {}
    for trace in traces:
        print(f"\n{trace.name}: {len(trace.jobs):,} jobs on {trace.nodes} cores")
        print(f"{'':36}{'slowdown':>10}{'p95 wait':>12}{'longest':>12}{'of largest 5 %':>16}")
        scores: dict[str, Score] = {
            "FCFS": waiting.reference(trace, backfill=False),
            "EASY": waiting.reference(trace),
            "EASY, shortest first": waiting.reference(trace, shortest_first=True),
        }
        for how in waiting.backfills():
            # A greedy queue asks for no run times.
            for stated in (True, False) if how == "easy" else (True,):
                label = f"ours, {how}, {'stated' if stated else 'learned'}"
                scores[label] = runs(trace, how, stated=stated)[0]
        drawn[trace.name] = scores
        for name, score in scores.items():
            print(
                f"{name:36}{score.slowdown:10.2f}{score.p95_s:10,.0f} s{score.longest_s:10,.0f} s"
                f"{score.largest_s:14,.0f} s"
            )
        default = f"ours, {next(iter(waiting.backfills()))}"
        found |= {
            f"{trace.name}_avebsld": round(scores[f"{default}, stated"].slowdown, 2),
            f"{trace.name}_learned_avebsld": round(scores[f"{default}, learned"].slowdown, 2),
            f"{trace.name}_easy_avebsld": round(scores["EASY"].slowdown, 2),
            f"{trace.name}_easy_sjbf_avebsld": round(scores["EASY, shortest first"].slowdown, 2),
            f"{trace.name}_p95_wait_s": round(scores[f"{default}, stated"].p95_s),
            f"{trace.name}_easy_p95_wait_s": round(scores["EASY"].p95_s),
            f"{trace.name}_longest_of_largest_s": round(scores[f"{default}, stated"].largest_s),
        }
        if trace.name == "kth" and len(trace.jobs) > _QUICK_JOBS:
            for name, published in _PUBLISHED.items():
                print(f"  published: {name:25}{published:10.2f}")
    if plots:
        drawing.waiting(drawn, plots)
    return found


def measure_dates(traces: list[Trace], limit: int | None, runs: Runs, plots: Path | None) -> Found:
    """How true the dates were."""
    found: Found = {}
    how = next(iter(waiting.backfills()))
    print(f"\n{'dates, second half, learned':36}{'scored':>8}{'by p90':>9}{'error':>15}{'naive':>12}{'ratio':>8}")
    scored: list[Dated] = []
    for trace in [*traces, waiting.itp_5(blind=True).first(limit)]:
        dated = waiting.held_out(runs(trace, how, stated=False)[1])
        scored.append(dated)
        coverage = "-" if dated.coverage is None else f"{100 * dated.coverage:.1f} %"
        error, naive, ratio = (
            "-" if value is None else form.format(value)
            for value, form in (
                (dated.error_s, "{:,.0f} s"),
                (dated.naive_s, "{:,.0f} s"),
                (dated.over_naive, "{:.2f}"),
            )
        )
        print(f"{trace.name:36}{dated.scored:8,}{coverage:>9}{error:>15}{naive:>12}{ratio:>8}")
        found[f"{trace.name}_p90_coverage"] = _rounded(dated.coverage)
        found[f"{trace.name}_date_error_over_naive"] = _rounded(dated.over_naive)
    if plots:
        drawing.dates({trace.name: waiting.second_half(runs(trace, how, stated=False)[1]) for trace in traces}, plots)
    main = scored[0]
    return {**found, "p90_coverage": _rounded(main.coverage), "date_error_over_naive": _rounded(main.over_naive)}


def measure_adversarial(client: redis.Redis) -> Found:
    """The big task against the stream."""
    found: Found = {}
    print(f"\n{'a big task against small ones':36}{'its wait':>10}")
    for how, options in waiting.backfills().items():
        for stated in (True, False):
            outcome = waiting.adversarial(client, options, stated=stated)
            label = f"{how}, {'stated' if stated else 'nothing known'}"
            said = "never while they came" if outcome.starved else "within their stream"
            print(f"{label:36}{outcome.big_wait_s:8,.0f} s   {said} ({outcome.stream_s:,.0f} s)")
            found[f"big_wait_s_{how}_{'stated' if stated else 'unknown'}"] = round(outcome.big_wait_s, 1)
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def main() -> None:
    """Measure the parts that are asked for, print tables, and last one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be given several times")
    parser.add_argument(
        "--quick", action="store_true", help="a sixth of openb, one order; the first 2,000 jobs of each trace"
    )
    names = [strategy.value for strategy in strategies()]
    parser.add_argument("--strategy", choices=names, action="append", help="only this one in packing; several times")
    parser.add_argument("--seeds", type=int, default=10, help="orders of arrival in packing (default: 10)")
    parser.add_argument("--kth", type=Path, help="CSV of the KTH-SP2 trace (see data/README.md); without: left out")
    parser.add_argument("--plots", type=Path, help="folder for pictures (needs the extra plot)")
    args = parser.parse_args()
    parts = args.part or list(PARTS)
    chosen = [Strategy(name) for name in args.strategy or strategies()]
    limit = _QUICK_JOBS if args.quick else None
    traces = [trace.first(limit) for trace in ([waiting.kth(args.kth)] if args.kth else []) + [waiting.itp_5()]]
    if not args.kth and {"waiting", "dates"} & set(parts):
        print("without --kth PATH the KTH-SP2 trace is left out: see benchmarks/data/README.md")
    found: Found = {"quick": args.quick}
    with private_server() as client:
        runs = Runs(client)
        steps: dict[str, Callable[[], Found]] = {
            "packing": lambda: measure_packing(client, chosen, args.seeds, args.quick, args.plots),
            "waiting": lambda: measure_waiting(traces, runs, args.plots),
            "dates": lambda: measure_dates(traces, limit, runs, args.plots),
            "adversarial": lambda: measure_adversarial(client),
            "cost": lambda: ledger.measure_tenants(client, ledger.QUICK if args.quick else ledger.FULL),
        }
        for part in parts:
            began = time.monotonic()
            found |= steps[part]()
            print(f"({part}: {time.monotonic() - began:,.0f} s)")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
