"""How often the repeats of a search claim a gain that is not there, on simulated hosts.

    python -m tests.benchmarks.false_gains [--seeds 2000] [--write]

Plans whose true speedup over the stock recipe is known are repeated as a search repeats its finalists, each seed on a
host of its own, after searches that leave time for few rounds and for all. ``false`` is the share of searches that say
a plan is faster than the recipe though none is, ``too much`` the share whose lower end ("at least, 95 %") lies above
the true speedup, ``found`` the share that hands a plan over. Of all these ``false`` and ``too much`` should be 5 % at
most.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
from pathlib import Path

from tests.tune.finalists.rounds import HOSTS, Said, repeated
from tests.tune.hosts import Host

REPORT = Path(__file__).parent / "reports" / "false_gains.md"
SECONDS = (15.0, 60.0, 3000.0)
EQUAL, GAIN, UNLIKE = (1.0, 1.0, 1.0), (1.05, 1.05, 1.05), (1.05, 1.04, 1.03)
"""True speedups of the three plans that are repeated."""
NEAR = {"first": (27.0, 27.54), "second": (27.1, 27.0)}
"""Two stock recipes, milliseconds of their trials and true ones: the one with the better trial is the slower one."""
Job = tuple[str, float, int]


def row(job: Job) -> tuple[Job, dict[str, float]]:
    """The shares of one kind of host and one length of search."""
    kind, seconds, seeds = job

    def each(speedups: tuple[float, ...]) -> list[Said]:
        return [repeated(Host(seed, **HOSTS[kind]), speedups, seconds) for seed in range(seeds)]

    equal, gain, unlike = each(EQUAL), each(GAIN), each(UNLIKE)
    near = [repeated(Host(seed, **HOSTS[kind]), GAIN, seconds, stock=NEAR) for seed in range(seeds)]
    return job, {
        "false": statistics.fmean(said.verdict.kind == "plan" for said in equal),
        "too much": statistics.fmean(said.is_too_much for said in gain),
        "found": statistics.fmean(said.verdict.kind == "plan" for said in gain),
        "unlike": statistics.fmean(said.is_too_much for said in unlike),
        "near": statistics.fmean(said.is_too_much for said in near),
        "found near": statistics.fmean(said.verdict.kind == "plan" for said in near),
        "blocks": statistics.fmean(said.blocks for said in gain),
    }


def markdown(rows: list[tuple[Job, dict[str, float]]], seeds: int) -> str:
    """The report."""
    chance = 2 * (0.05 * 0.95 / seeds) ** 0.5
    lines = f"""\
# Gains that are not there

`python -m tests.benchmarks.false_gains --seeds {seeds} --write`; {seeds} seeds a number, so that a share of 5 % is off
by up to {chance:.1%} by chance.

Three plans are repeated: all as fast as the stock recipe (false gains), all 1.05 times as fast, or 1.05, 1.04 and 1.03
times. Repeats may take a fifth of the time of the search. A block is one candidate, timed once. Two recipes: the one
whose trial was the faster one takes 2 % longer than the other; plans are 1.05 times as fast as that.

| host | search | false gains | "at least" > 1.05 | unlike plans | two recipes | 1.05 found | two recipes | blocks |
|---|---|---|---|---|---|---|---|---|
""".splitlines()
    for (kind, seconds, _), share in rows:
        lines.append(
            f"| {kind} | {seconds:g} s | {share['false']:.1%} | {share['too much']:.1%} | {share['unlike']:.1%} | "
            f"{share['near']:.1%} | {share['found']:.0%} | {share['found near']:.0%} | {share['blocks']:.0f} |"
        )
    worst = max(max(share[what] for what in ("false", "too much", "unlike", "near")) for _, share in rows)
    return "\n".join([*lines, "", f"The largest share of errors is {worst:.1%}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--write", action="store_true", help="keep the report")
    args = parser.parse_args()
    jobs = [(kind, seconds, args.seeds) for kind in HOSTS for seconds in SECONDS]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        text = markdown(pool.map(row, jobs, chunksize=1), args.seeds)
    if args.write:
        REPORT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
