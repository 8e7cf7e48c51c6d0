"""``amptune tune``: parses the arguments, runs the search, prints the summary."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amptune.commands.guard import Finished
from amptune.commands.measuring import add_measurement, options_of
from amptune.commands.targets import add_state_and_batch, add_target, say, surviving
from amptune.commands.values import positive_int, seconds, size
from amptune.core.sizes import size_text
from amptune.report.tune_data import MAYBE_FASTER, Run

if TYPE_CHECKING:
    from amptune.tune.run import TuneResult
    from amptune.tune.workers.options import TuneOptions


NEARLY_BOUND = 0.7
"""Share of a step that Python takes to queue it, from which on a slower host decides what is gained: on an H200 a plan
of 43 in 57 ms was 1.14x faster than the best stock recipe, and on a slower host 0.95x."""
LABELS = {
    "patched": "patched model",
    "plan": "plan",
    "scaler": "scaler config",
    "patch": "diff",
    "report": "report",
    "result": "all numbers",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_target(parser)
    add_state_and_batch(parser)
    add_measurement(parser)
    parser.add_argument("--budget", type=positive_int, default=50, metavar="N", help="trials (default 50)")
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS",
                        help="time for the trials and the final repeats, which a part of it is kept for; a trial in "
                        "flight is ended a tenth later, and measured by --resume (what is measured before the first "
                        "trial comes on top)")  # fmt: skip
    parser.add_argument("--objective", choices=("time", "memory"), default="time",
                        help="what the best plan has least of (default time)")  # fmt: skip
    parser.add_argument("--max-memory", type=size, metavar="SIZE",
                        help="peak memory that a candidate may take, such as 40GiB")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="output folder (default amptune-out/<model>)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", dest="existing", action="store_const", const="resume", default="refuse",
                          help="continue the study in the output folder")  # fmt: skip
    existing.add_argument("--overwrite", dest="existing", action="store_const", const="overwrite",
                          help="start anew in the output folder")  # fmt: skip
    parser.add_argument("--format", choices=("text", "json"), default="text", help="what goes to stdout")


def run(args: argparse.Namespace) -> int:
    """Search and print; returns 0 also when nothing beats the stock recipes."""
    return surviving(args, lambda finished: _work(args, finished))


def _work(args: argparse.Namespace, finished: Finished) -> int:
    names = ("budget", "timeout", "existing", "objective", "max_memory")
    settings = {name: getattr(args, name) for name in names}
    options = options_of(args, **settings | ({"out": args.out} if args.out else {}))
    _check_memory(options)
    from amptune.tune.run import tune
    from amptune.tune.study.progress import Progress

    progress = Progress(options.budget)
    try:
        with progress.live():
            result = tune(options, progress)
    except KeyboardInterrupt:
        if progress.kept:
            say(f"trials kept in {options.out}: {progress.kept}; amptune tune --resume goes on from there")
        raise
    finished()
    print(json.dumps(result.data, indent=2) if args.format == "json" else summary(result))
    return 0


def summary(result: TuneResult) -> str:
    """What was found and where the files lie."""
    data, verdict = result.data, result.verdict
    stock, step = data["repeats"]["stock"], data["best"]["step_ms"]
    stock_text = f"{stock['recipe']} at {stock['step_ms']['median']:.2f} ms a step"
    lines = [_table(data), *_what_decides(data), ""]
    if verdict.kind == "plan" and data["objective"] == "memory":
        taken, theirs = size_text(data["best"]["memory_bytes"]), size_text(stock["memory_bytes"])
        lines.append(
            f"The plan takes {taken} at its peak, the best stock recipe {theirs} ({stock_text}); "
            f"it takes {step['median']:.2f} ms a step; loss gap to FP32 {_gap(data)}."
        )
    elif verdict.kind == "plan":
        lines.append(
            f"The plan takes {step['median']:.2f} ms a step: {verdict.speedup:.2f}x faster than the best stock recipe "
            f"({stock_text}), at least {verdict.speedup_low:.2f}x with 95 % confidence; "
            f"loss gap to FP32 {_gap(data)}."
        )
    elif data["stopped"] == "exhausted" and _has_only_recipes(data):
        lines.append(f"No plan differs from the stock recipes: the best of them, {stock_text}, is what was written.")
    elif _has_only_recipes(data):
        tried = f"stock recipes ({len(data['trials'])})" if len(data["trials"]) > 1 else "one stock recipe"
        lines.append(
            f"No plan was tried, only {tried}: the best, {stock_text}, is what was written. "
            "A larger --budget or --timeout leaves room for plans."
        )
    else:
        lines.append(f"Nothing beat the best stock recipe, {stock_text}, beyond the noise. It is what was written.")
        lines += _missed(data)
    lines += [*_parts(data), *_eager(data), *_refused(data)]
    lines.append(_next_step(result))
    if data["not_measured"]:
        spent = "time" if data["stopped"] == "timeout" else "budget"
        lines.append(
            f"Not measured before the {spent} was used up: {', '.join(data['not_measured'])}. "
            "The best stock recipe is the best of the others."
        )
    lines += [f"Take care: {told}." for told in result.told]
    if data["launch_bound"]:
        remedy = "a larger batch or CUDA graphs" if data["mode"] == "compile" else "--compile or a larger batch"
        lines.append(
            f"The step is bound by Python launching kernels, not by the GPU: {remedy} will gain more than any format."
        )
    elif verdict.kind == "plan" and (data["launch_ms"] or 0.0) >= NEARLY_BOUND * step["median"]:
        lines.append(
            f"Python takes {data['launch_ms']:.0f} of these {step['median']:.0f} ms to launch the kernels: on a slower "
            "host less is gained, with a larger batch more."
        )
    lines += [f"{LABELS[key] + ':':15s} {path}" for key, path in result.files.items() if key in LABELS]
    return "\n".join(lines)


def _missed(data: dict[str, Any]) -> list[str]:
    """A line about the best plan, which did not win: by how much it may be faster all the same."""
    missed = data.get("missed")
    if missed is None:
        return []
    gain, trial = missed["speedup"], missed["trial"]
    said = f"In {missed['rounds']} rounds beside it the best plan (trial {trial}) was {gain:.2f}x as fast"
    if gain < MAYBE_FASTER:
        return [f"{said}."]
    option, steadier = missed.get("more_rounds_by"), "an idle machine makes them steadier"
    more = f"a larger {option} leaves time for more rounds, and {steadier}" if option else steadier
    return [f"{said}, at least {missed['speedup_low']:.2f}x with 95 % confidence: {more}."]


def _parts(data: dict[str, Any]) -> list[str]:
    """A line about what the gain of a plan that is compiled in parts owes to that."""
    if data["compiled"] != "parts":
        return []
    if data["best"]["recipe"] != "plan":
        return [f"It is {data['best']['recipe']} with its blocks compiled each by itself, not the model as a whole."]
    gain, name = data["attribution"]["stock_in_parts"], data["repeats"]["stock"]["recipe"]
    share = "" if gain is None else f": compiled so, {name} is {gain:.2f}x as fast as compiled whole"
    return [f"The plan's blocks are compiled each by itself, not the model as a whole{share}."]


def _eager(data: dict[str, Any]) -> list[str]:
    """Lines about compile mode whose trials ran in eager mode."""
    if not data.get("trials_in_eager"):
        return []
    lines = ["Trials ran in eager mode, since compiling takes far longer than a trial, and so did the table's recipes."]
    if not data["repeated"]:
        return [*lines, "Compiled, nothing was measured."]
    ways = {True: "in eager mode", False: "compiled"}
    recipe, stock = data["repeats"]["stock"]["recipe"], ways[data["repeats"]["stock_in_eager"]]
    if data["best"]["recipe"] != "plan":
        return [*lines, f"In the repeats {recipe} ran {stock}."]
    return [*lines, f"In the repeats {recipe} ran {stock}, and the plan {ways[data['compiled'] == 'eager']}."]


def _gap(data: dict[str, Any]) -> str:
    """The plan's loss gap, and why it may be larger than the tolerance where it is."""
    gap = data["best"]["loss_gap"]
    if gap <= data["tolerance"]:
        return f"{gap:+.3%}"
    allowed = max([data["noise"], *(trial.get("loss_gap_allowed") or 0.0 for trial in data["trials"])])
    return f"{gap:+.3%}, while FP32 is up to {allowed:.3%} from itself"


def _has_only_recipes(data: dict[str, Any]) -> bool:
    return all(trial["kind"] == "stock" for trial in data["trials"])


def _refused(data: dict[str, Any]) -> list[str]:
    """A line about a stock recipe that does not train well enough and is faster than the best one that does: its users
    would otherwise take the gain for what they get. By trials alone: repeats may be compiled otherwise, or come in a
    slower moment of the host."""
    ms = {trial["number"]: trial["step_ms"]["median"] for trial in data["trials"] if trial["step_ms"]}
    most = math.inf if data["max_memory"] is None else data["max_memory"]
    wrong = [entry for entry in data["stock"] if not entry["valid"] and (entry["memory_bytes"] or 0) <= most]
    fastest = min(
        (entry for entry in wrong if entry["trial"] in ms), key=lambda entry: ms[entry["trial"]], default=None
    )
    if data["objective"] != "time" or fastest is None:
        return []
    theirs, stock, best = (ms[each["trial"]] for each in (fastest, data["repeats"]["stock"], data["best"]))
    if theirs >= stock:
        return []
    recipe = data["repeats"]["stock"]["recipe"]
    said = (
        f"Refused, though its trial was faster than that of the best stock recipe ({recipe}): {fastest['recipe']}, "
        f"{theirs:.2f} ms a step against {stock:.2f} ({fastest['reason']})."
    )
    if theirs >= best:
        return [f"{said} What was written is {theirs / best:.2f}x faster than it."]
    slower = "" if best == stock else f"The trial of what was written took {best:.2f} ms, which is slower. "
    return [f"{said} {slower}Whether your model trains with {fastest['recipe']}, more --steps tell."]


def _next_step(result: TuneResult) -> str:
    """What the user does now."""
    plan, patched = result.plan, result.files["patched"].name
    itself = " (it compiles its blocks itself: torch.compile(model) is not needed, and changes nothing)"
    is_eager = result.data["compiled"] == "eager" and result.data["repeated"]
    without = " and without torch.compile" if is_eager else ""
    if not (plan.sites or plan.tf32 or plan.channels_last or plan.loss_compile or plan.params or plan.compile_parts):
        return (
            f"What to do now: train your file as it is, without torch.autocast{without}; {patched} computes the same."
        )
    calls = " and call its set_backend_flags() first" if plan.tf32 else ""
    calls += itself if plan.compile_parts else ""
    scaled = ", with the GradScaler of scaler.json" if plan.scaler.enabled else ""
    return (
        f"What to do now: train with {patched} in place of your file{calls}, without torch.autocast{without}{scaled}."
    )


def _table(data: dict[str, Any]) -> str:
    stock, best, beside = data["stock"], data["best"], data["repeats"]["stock"]
    # In the repeats a step may take longer than in its trial, on a host that changes its speed.
    label = "best, repeated" if data["repeated"] else "best"
    rows = [(entry["recipe"], entry) for entry in stock]
    if data["repeated"] and best["recipe"] != beside["recipe"]:
        rows.append((f"repeated: {beside['recipe']}", beside))
    rows.append((f"{label}: {best['recipe']}", best))
    width = max(len(name) for name, _ in rows)
    lines = [f"{'recipe':{width}s} {'ms/step':>9s} {'quartiles':>19s} {'loss gap':>10s}  valid"]
    for name, entry in rows:
        step, gap = entry["step_ms"], entry["loss_gap"]
        times = f"{step['median']:9.2f} {step['low']:9.2f}-{step['high']:<9.2f}" if step else f"{'-':>9s} {'':19s}"
        gap_text = "-" if gap is None else f"{gap:+.3%}"
        valid = "yes" if entry["valid"] else f"no: {entry['reason']}"
        lines.append(f"{name:{width}s} {times} {gap_text:>10s}  {valid}")
    return "\n".join(lines)


def _what_decides(data: dict[str, Any]) -> list[str]:
    """A line under the table where its numbers seem to say that another recipe is the best: why, and which decide."""
    stock, best = data["repeats"]["stock"]["recipe"], data["best"]
    steps = {e["recipe"]: e["step_ms"]["median"] for e in data["stock"] if e["valid"] and e["step_ms"]}
    if data["objective"] != "time" or data.get("trials_in_eager") or stock not in steps:
        return []
    most = max(best["step_ms"]["median"], steps[stock])
    others = [name for name, ms in steps.items() if ms < most and name != best["recipe"]]
    if not others:
        return []
    shown = " and ".join(f"{name} ({steps[name]:.2f} ms)" for name in others)
    why = f"By its trial {shown} may seem faster, but trials meet fast and slow moments of the machine"
    if data["repeated"]:
        return [f"{why}: what is marked as repeated was measured in turns, which decides."]
    ranked = {trial["recipe"]: Run.read(trial).ranked for trial in data["trials"]}
    if ranked[stock] > min(ranked[name] for name in others):
        return [f"{why}: what was measured in turns decides."]
    told = ", ".join(f"{name} {ranked[name]:.2f} ms" for name in (stock, *others))
    return [f"{why}: steps in turns with another trial's decide, and by these it is {told}."]


def _check_memory(options: TuneOptions) -> None:
    """Raise UsageError where memory is asked for on a device that does not count it."""
    if not options.device.startswith("cpu") or (options.objective == "time" and options.max_memory is None):
        return
    from amptune.errors import UsageError

    option = "--max-memory" if options.max_memory is not None else "--objective memory"
    raise UsageError(f"{option}: torch counts the memory of a GPU only, and this runs on {options.device}",
                     hint="leave it out, or choose a GPU with --device")  # fmt: skip
