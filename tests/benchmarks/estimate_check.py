"""Predicted training steps against measured ones: step time, speedup over FP32 and peak memory of each recipe.

On a GPU it measures (tests/benchmarks/step_times.py: forward, loss, backward, fused AdamW, eager mode) and calibrates
the roofline by amptune's own micro-benchmark; then it predicts, and writes steps_<gpu>.json (all that was measured) and
estimate_<gpu>.json and .md (the comparison). Without a GPU, or with --measured, it predicts for the steps in files.

    PYTHONPATH=.:rules python tests/benchmarks/estimate_check.py --out DIR [--models vit,t5] [--no-profile]
    PYTHONPATH=.:rules python tests/benchmarks/estimate_check.py --out DIR --unseen 4 --measure-only --no-profile
    cd tests/benchmarks/reports; PYTHONPATH=../../..:../../../rules python ../estimate_check.py --measured \\
        steps_h200.json steps_unseen_h200.json steps_unseen_2_h200.json steps_unseen_3_h200.json \\
        steps_unseen_4_h200.json

Two sets of constants are compared: ``table`` (amptune/core/efficiency.py, what a machine without this GPU uses) and
``calibrated`` (measured on this GPU by the micro-benchmark, which looks at no model). Models that the structure of the
estimate was adjusted on first are marked ``seen``. Errors at first sight are what first_sight.py reports.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import importlib.metadata
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from amptune.core.closeness import nearly_fastest
from amptune.core.files import write_atomic
from amptune.core.hardware import GPUS, Gpu, gpu_for_device
from amptune.core.recipes import RECIPES
from tests.benchmarks.estimate_report import ERRORS, markdown
from tests.benchmarks.step_times import ENTRIES, MEASURED, Entry, Wanted, measure

REPORTS = Path(__file__).parent / "reports"
GIB = 2**30
PROFILE_UNTIL = 110.0
"""Seconds after which no further step is profiled: the whole run stays under three minutes."""
GROUPS = ("blind", "seen")
NEARLY_BEST = 0.03
"""How far behind the fastest recipe one is that is as good a choice."""
SCALES = tuple(percent / 100 for percent in range(60, 151, 2))
"""Of the cost of a launch, tried where it is set on all models but one."""


def measured_here(
    entries: Sequence[Entry], wanted: Wanted, *, taken_apart: Sequence[Entry] = (),
    before: Sequence[Mapping[str, Any]] = (), keep: Callable[[Mapping[str, Any]], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Everything that is measured on the GPU at hand: its facts, its calibration, and the steps.

    Args:
        entries: models whose steps are measured.
        wanted: what else is measured of them; no further step is profiled after ``PROFILE_UNTIL`` seconds.
        taken_apart: further models, of which only the ops and the launches of a step are measured.
        before: rows of a run that was broken off, whose models are not measured again.
        keep: called after each model with what there is so far.
    """
    import torch

    from amptune.analyze.calibration.calibrate import calibrate
    from amptune.analyze.device import present_gpu

    start = time.perf_counter()
    gpu = present_gpu()
    if gpu is None:
        raise SystemExit("no CUDA device here: give the steps of another machine with --measured")
    rows = [dict(row) for row in before]
    found = {
        "version": 1,
        "gpu": {"name": gpu.name, "capability": list(gpu.capability or ()), "memory": gpu.memory, "sms": gpu.sms,
                "bandwidth": gpu.bandwidth},
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "calibration": calibrate(gpu).to_json(),
        "rows": rows,
    }  # fmt: skip
    limited = dataclasses.replace(
        wanted, kernels=lambda: wanted.kernels() and time.perf_counter() - start < PROFILE_UNTIL
    )
    apart = Wanted(ops=True, launches=True, steps=False)
    done = {row["model"] for row in rows}
    left = [(entry, limited) for entry in entries if entry.model not in done]
    for entry, chosen in left + [(entry, apart) for entry in taken_apart]:
        try:
            for row in measure(entry, chosen):
                rows.append(row)
                _say(_line(row, time.perf_counter() - start))
        except (RuntimeError, ValueError) as error:  # no memory, no kernel, too few samples for a layer
            _say(f"{entry.model}: {str(error).splitlines()[0]}")
        torch.cuda.empty_cache()
        if keep:
            keep(found)
    found["seconds"] = round(time.perf_counter() - start, 1)
    return found


def _line(row: Mapping[str, Any], seconds: float) -> str:
    step = (
        f"{row['step_ms']['median']:9.2f} ms {row['memory_bytes'] / GIB:6.2f} GiB" if "step_ms" in row else "profiled"
    )
    return f"{seconds:6.1f} s {row['model']:12s} {row['recipe']:22s} {step}"


def gpu_of(measured: Mapping[str, Any]) -> Gpu:
    """The GPU that was measured, with its table's constants."""
    facts = measured["gpu"]
    if "key" in facts:
        return GPUS[facts["key"]]
    capability = (facts["capability"][0], facts["capability"][1])
    return gpu_for_device(facts["name"], capability, facts["memory"], facts["sms"], facts["bandwidth"])


def constants_of(measured: Mapping[str, Any]) -> dict[str, Gpu]:
    """The GPU with the table's constants, and with those of its calibration."""
    gpus = {"table": gpu_of(measured)}
    if measured.get("calibration"):
        from amptune.analyze.calibration.calibrate import constants_from

        gpus["calibrated"] = dataclasses.replace(
            gpus["table"], measured=constants_from(gpus["table"], measured["calibration"])
        )
    return gpus


def predict(entry: Entry, recipes: Sequence[str], gpus: Mapping[str, Gpu], mode: str) -> dict[str, Any]:
    """Constants -> recipe (``+fixed`` included) -> milliseconds and bytes, for one model in a process of its own."""
    from amptune.analyze.estimate import estimate_all
    from amptune.analyze.sitefacts.enrich import enrich
    from amptune.capture import capture, load_target

    captured = capture(load_target(entry.spec))
    enrich(captured.graph, captured.graph_module)
    if entry.strided_bias:
        _stride_biases(captured.graph)
    result = {}
    for label, gpu in gpus.items():
        wanted = [RECIPES[name] for name in recipes]
        # The loop of step_times keeps no output.
        table = estimate_all(captured.graph, [gpu], wanted, mode=mode, holds_output=False)[gpu.key]  # type: ignore[arg-type]
        result[label] = {
            name: {
                "ms": each.step_ms,
                "bytes": each.memory.peak,
                "bound": each.bound,
                "gpu_ms": each.gpu_ms,
                "launch_ms": each.launch_ms,
            }
            for name, each in table.items()
        }
    return result


def _stride_biases(graph: Any) -> None:
    """Attention masks with a gradient as the measured kernels show them."""
    for site in list(graph):
        if site.attrs.get("masked") and site.inputs[-1].requires_grad:
            graph.replace_site(dataclasses.replace(site, attrs={**site.attrs, "mask_strided": True}))


def compare(measured: Mapping[str, Any], entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """One row for each measured step and set of constants."""
    gpus = constants_of(measured)
    groups = {(row["model"], row["mode"], tuple(sorted(row.get("arguments", {}).items()))) for row in measured["rows"]}
    found = []
    with concurrent.futures.ProcessPoolExecutor(
        max(1, min(5, (os.cpu_count() or 2) // 2)), mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        jobs = []
        for model, mode, arguments in sorted(groups):
            entry = dataclasses.replace(next(e for e in entries if e.model == model), arguments=dict(arguments))
            rows = [row for row in measured["rows"]
                    if (row["model"], row["mode"], tuple(sorted(row.get("arguments", {}).items())))
                    == (model, mode, arguments)]  # fmt: skip
            names = list(dict.fromkeys(row["recipe"].removesuffix("+fixed") for row in rows))
            jobs.append((entry, rows, pool.submit(predict, entry, names, gpus, mode)))
        for entry, rows, job in jobs:
            found += list(_rows(entry, rows, job.result()))
    return found


def written_down(measured: Mapping[str, Any], entries: Sequence[Entry]) -> dict[str, Any]:
    """Predictions of models before they are measured, with the constants of ``measured``, whose steps are not read."""
    return {entry.model: predict(entry, MEASURED, constants_of(measured), "eager") for entry in entries}


def note(file: Path, gpu: Mapping[str, Any], when: str, predicted: Mapping[str, Any]) -> None:
    """Adds predictions to the file under a name.

    Raises:
        SystemExit: the file has other predictions of one of the models under that name: those stay as they were.
    """
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"version": 1, "gpu": gpu}
    noted = found.setdefault("predicted", {}).setdefault(when, {})
    if both := sorted(noted.keys() & predicted.keys()):
        raise SystemExit(f"{file}: {', '.join(both)} predicted as {when!r} already: give another --when")
    noted.update(predicted)
    write_atomic(file, json.dumps(found, indent=1) + "\n")


def _rows(entry: Entry, rows: Sequence[Mapping[str, Any]], predicted: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    base = next((row for row in rows if row["recipe"] == "fp32"), rows[0])
    for constants, table in predicted.items():
        for row in rows:
            name = row["recipe"]
            ms, memory = row["step_ms"]["median"], row.get("memory_bytes")
            speedup = base["step_ms"]["median"] / ms
            expected = table[base["recipe"]]["ms"] / table[name]["ms"]
            yield {
                "model": entry.model + "".join(f" {value}" for value in row.get("arguments", {}).values()),
                "group": "blind" if entry.blind else "seen",
                "constants": constants,
                "mode": row["mode"],
                "recipe": name,
                "bound": table[name]["bound"],
                "gpu_ms": round(table[name]["gpu_ms"], 2),
                "launch_ms": round(table[name]["launch_ms"], 2),
                "measured_ms": round(ms, 2),
                "predicted_ms": round(table[name]["ms"], 2),
                "error": round(table[name]["ms"] / ms - 1, 4),
                "measured_speedup": None if row is base else round(speedup, 3),
                "predicted_speedup": None if row is base else round(expected, 3),
                "speedup_error": None if row is base else round(expected / speedup - 1, 4),
                "measured_gib": round(memory / GIB, 3) if memory else None,
                "predicted_gib": round(table[name]["bytes"] / GIB, 3) if memory else None,
                "memory_error": round(table[name]["bytes"] / memory - 1, 4) if memory else None,
            }


Middle = Callable[[Sequence[float]], float]


def medians(
    rows: Sequence[Mapping[str, Any]], middle: Middle = statistics.median
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Constants -> group -> median (or another ``middle``) absolute error of step time, speedup and memory."""
    table: dict[str, dict[str, dict[str, float | None]]] = {}
    for constants in dict.fromkeys(row["constants"] for row in rows):
        for group in (*GROUPS, "all"):
            chosen = [row for row in rows if row["constants"] == constants and group in (row["group"], "all")]
            if chosen:
                table.setdefault(constants, {})[group] = {key: _middle(chosen, key, middle) for key in ERRORS}
    return table


def choices(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Constants -> of how many models the recipe that is predicted to be the fastest was measured more than
    ``NEARLY_BEST`` behind the fastest, and behind by how much in each of them: the stock recipes. ``named``: models
    where a nearly fastest one is among those that analyze names as too close to call; ``names``: how many it names;
    ``alone``: models where it names one, and of those ``right`` where that is nearly the fastest."""
    found: dict[str, dict[str, Any]] = {}
    for constants in dict.fromkeys(row["constants"] for row in rows):
        own = [row for row in rows if row["constants"] == constants and not row["recipe"].endswith("+fixed")]
        models = list(dict.fromkeys(row["model"] for row in own))
        behind = {}
        counted = dict.fromkeys(("named", "names", "alone", "right"), 0)
        for model in models:
            steps = [row for row in own if row["model"] == model]
            best = min(row["measured_ms"] for row in steps)
            chosen = min(steps, key=lambda row: row["predicted_ms"])
            if chosen["measured_ms"] > best * (1 + NEARLY_BEST):
                behind[model] = round(chosen["measured_ms"] / best - 1, 4)
            names = nearly_fastest({row["recipe"]: {**row, "step_ms": row["predicted_ms"]} for row in steps})
            is_named = any(row["recipe"] in names and row["measured_ms"] <= best * (1 + NEARLY_BEST) for row in steps)
            counted["named"] += is_named
            counted["names"] += len(names)
            counted["alone"] += len(names) == 1
            counted["right"] += len(names) == 1 and is_named
        found[constants] = {"models": len(models), "behind": behind, **counted}
    return found


def leave_one_out(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Constants -> median error of the speedups of each model with the cost of a launch set on the other models alone,
    to the least mean error of their steps: the one constant that is set on steps."""
    found: dict[str, float | None] = {}
    for constants in dict.fromkeys(row["constants"] for row in rows):
        own = [row for row in rows if row["constants"] == constants]
        errors: list[float] = []
        for model in dict.fromkeys(row["model"] for row in own):
            others = [row for row in own if row["model"] != model]
            scale = min(SCALES, key=lambda each: sum(abs(_step(row, each) / row["measured_ms"] - 1) for row in others))
            steps = {row["recipe"]: _step(row, scale) for row in own if row["model"] == model}
            errors += [
                abs(steps["fp32"] / steps[row["recipe"]] / row["measured_speedup"] - 1)
                for row in own
                if row["model"] == model and row["measured_speedup"] is not None and "fp32" in steps
            ]
        found[constants] = round(statistics.median(errors), 4) if errors else None
    return found


def _step(row: Mapping[str, Any], scale: float) -> float:
    """Predicted milliseconds with another cost of a launch."""
    return float(max(row["gpu_ms"], scale * row["launch_ms"]))


def first_errors(measured: Mapping[str, Any], file: Path) -> dict[str, dict[str, dict[str, float | None]]]:
    """When -> constants -> median errors of the predictions that were written down before the steps were seen."""
    rows = first_rows(measured, file)
    return {when: {c: groups["all"] for c, groups in medians(found).items()} for when, found in rows.items()}


def first_rows(measured: Mapping[str, Any], file: Path) -> dict[str, list[dict[str, Any]]]:
    """When -> one row for each measured step of a model whose step was predicted before it was measured."""
    found: dict[str, list[dict[str, Any]]] = {}
    entries = {entry.model: entry for entry in ENTRIES}
    for when, models in json.loads(file.read_text(encoding="utf-8"))["predicted"].items():
        for model, predicted in models.items():
            if own := [row for row in measured["rows"] if row["model"] == model]:
                blank = {"gpu_ms": 0.0, "launch_ms": 0.0}
                full = {c: {name: blank | each for name, each in table.items()} for c, table in predicted.items()}
                found.setdefault(when, []).extend(_rows(entries[model], own, full))
    return found


def _middle(rows: Sequence[Mapping[str, Any]], key: str, middle: Middle) -> float | None:
    errors = [abs(row[key]) for row in rows if row[key] is not None]
    return round(middle(errors), 4) if errors else None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Measure or read, predict, write, print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--measured", type=Path, nargs="+", default=[], help="steps measured elsewhere (steps_<gpu>.json), run by run"
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--models", help="comma-separated; default: all")
    chosen.add_argument(
        "--unseen",
        type=int,
        choices=sorted({entry.unseen for entry in ENTRIES if entry.unseen}),
        help="the models of this set, whose steps go to steps_unseen_<set>_<gpu>.json",
    )
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the reports")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="steps_so_far.json of a run that was broken off")
    parser.add_argument("--no-profile", action="store_true", help="leave the kernels of the steps out")
    parser.add_argument("--ops", action="store_true", help="what each op of a step launched, and steps of few samples")
    parser.add_argument("--ops-of", help="models of which only that is measured, comma-separated")
    parser.add_argument("--measure-only", action="store_true", help="write steps_<gpu>.json and predict nothing")
    parser.add_argument(
        "--write-down",
        type=Path,
        metavar="FILE",
        help="predict --models with the constants of --measured, add that to FILE and compare nothing",
    )
    parser.add_argument("--when", default="written down", help="name of these predictions in the file")
    args = parser.parse_args()
    wanted = set(args.models.split(",")) if args.models else {entry.model for entry in ENTRIES}
    if args.unseen:
        wanted = {entry.model for entry in ENTRIES if entry.unseen == args.unseen}
    steps = f"steps_unseen_{args.unseen}" if args.unseen else "steps"
    entries = [entry for entry in ENTRIES if entry.model in wanted and entry.eager]
    apart = [entry for entry in ENTRIES if entry.model in (args.ops_of or "").split(",")]
    args.out.mkdir(parents=True, exist_ok=True)
    if args.measured:
        runs = [json.loads(file.read_text(encoding="utf-8")) for file in args.measured]
        if args.write_down:
            note(args.write_down, runs[-1]["gpu"], args.when, written_down(runs[-1], entries))
            return 0
        for run in runs:
            run["rows"] = [row for row in run["rows"] if row["model"] in wanted]
    else:
        also = Wanted(kernels=lambda: not args.no_profile, ops=args.ops, launches=args.ops)

        def keep(found: Mapping[str, Any]) -> None:
            write_atomic(args.out / "steps_so_far.json", json.dumps(found) + "\n")

        before = json.loads(args.resume.read_text(encoding="utf-8"))["rows"] if args.resume else []
        runs = [measured_here(entries, also, taken_apart=apart, before=before, keep=keep)]
        (args.out / "steps_so_far.json").unlink(missing_ok=True)
    measured = runs[0] | {"rows": [row for run in runs for row in run["rows"]]}
    key = measured["gpu"].get("key") or gpu_of(measured).key
    if not args.measured:
        write_atomic(args.out / f"{steps}_{key}.json", json.dumps(measured, indent=None if args.ops else 1) + "\n")
    if args.measure_only:
        return 0
    rows = [row for run in runs for row in compare(run, ENTRIES)]
    summary, means = medians(rows), medians(rows, statistics.fmean)
    left_out, noted = leave_one_out(rows), REPORTS / f"predicted_{key}.json"
    first = first_errors(measured, noted) if noted.exists() else {}
    chosen_best = choices(rows)
    report = {"version": 1, "gpu": measured["gpu"], "torch": measured["torch"], "median": summary, "mean": means,
              "leave_one_out": left_out, "choice": chosen_best, "first": first, "rows": rows}  # fmt: skip
    write_atomic(args.out / f"estimate_{key}.json", json.dumps(report, indent=1) + "\n")
    command = " ".join(["PYTHONPATH=.:rules python tests/benchmarks/estimate_check.py", *sys.argv[1:]])
    text = markdown(measured, rows, summary, means, first, left_out, chosen_best, command)
    write_atomic(args.out / f"estimate_{key}.md", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
