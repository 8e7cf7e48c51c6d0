"""``amptune tune``: parses the arguments, runs the search, prints the summary."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amptune.commands.targets import add_state_and_batch

if TYPE_CHECKING:
    from amptune.tune.options import TuneOptions
    from amptune.tune.run import TuneResult


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
    parser.add_argument("model", nargs="?", help="model.py, model.py:Name or package.module:callable "
                        "(default: [tool.amptune] model, else model.py)")  # fmt: skip
    parser.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE", help="constructor argument")
    parser.add_argument("--input", action="append", default=[], metavar="SHAPE[:DTYPE[:HIGH]]",
                        help="model input, such as 16x1024:int64:50257")  # fmt: skip
    add_state_and_batch(parser)
    parser.add_argument("--budget", type=_positive_int, default=50, metavar="N", help="trials (default 50)")
    parser.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="stop starting trials after this time")
    parser.add_argument("--trial-timeout", type=_seconds, default=600.0, metavar="SECONDS",
                        help="a trial that takes longer has hung (default 600)")  # fmt: skip
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the GPU when there is one)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batch order and sampler (default 0)")
    parser.add_argument("--tolerance", type=_share, default=0.005, metavar="SHARE",
                        help="largest loss gap to FP32 that is still valid (default 0.005)")  # fmt: skip
    parser.add_argument("--steps", type=_positive_int, default=20, metavar="K",
                        help="training steps a trial is judged on (default 20)")  # fmt: skip
    parser.add_argument("--compile", nargs="?", const="inductor", metavar="BACKEND",
                        help="measure under torch.compile: blocks in the search, at the end all")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="output folder (default amptune-out/<model>)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", dest="existing", action="store_const", const="resume", default="refuse",
                          help="continue the study in the output folder")  # fmt: skip
    existing.add_argument("--overwrite", dest="existing", action="store_const", const="overwrite",
                          help="start anew in the output folder")  # fmt: skip
    parser.add_argument("--format", choices=("text", "json"), default="text", help="what goes to stdout")


def run(args: argparse.Namespace) -> int:
    """Search and print; returns 0 also when nothing beats the stock recipes."""
    options = _options(args)
    from amptune.tune.progress import Progress
    from amptune.tune.run import tune

    progress = Progress(options.budget)
    with progress.live():
        result = tune(options, progress)
    print(json.dumps(result.data, indent=2) if args.format == "json" else summary(result))
    return 0


def summary(result: TuneResult) -> str:
    """What was found and where the files lie."""
    data, verdict = result.data, result.verdict
    stock, step = data["repeats"]["stock"], data["best"]["step_ms"]
    stock_text = f"{stock['recipe']} at {stock['step_ms']['median']:.2f} ms a step"
    lines = [_table(data), ""]
    if verdict.kind == "plan":
        lines.append(
            f"The plan takes {step['median']:.2f} ms a step: {verdict.speedup:.2f}x faster than the best stock recipe "
            f"({stock_text}), at least {verdict.speedup_low:.2f}x with 95 % confidence; "
            f"loss gap to FP32 {data['best']['loss_gap']:+.3%}."
        )
    else:
        lines.append(f"Nothing beat the best stock recipe, {stock_text}, beyond the noise. It is what was written.")
    lines += [f"{LABELS[key] + ':':15s} {path}" for key, path in result.files.items() if key in LABELS]
    return "\n".join(lines)


def _table(data: dict[str, Any]) -> str:
    stock = data["stock"]
    lines = [f"{'recipe':16s} {'ms/step':>9s} {'quartiles':>19s} {'loss gap':>10s}  valid"]
    for entry in [*stock, data["best"]]:
        step, gap = entry["step_ms"], entry["loss_gap"]
        times = f"{step['median']:9.2f} {step['low']:9.2f}-{step['high']:<9.2f}" if step else f"{'-':>9s} {'':19s}"
        gap_text = "-" if gap is None else f"{gap:+.3%}"
        valid = "yes" if entry["valid"] else f"no: {entry['reason']}"
        name = "best: " + entry["recipe"] if entry is data["best"] else entry["recipe"]
        lines.append(f"{name:16s} {times} {gap_text:>10s}  {valid}")
    return "\n".join(lines)


def _options(args: argparse.Namespace) -> TuneOptions:
    from amptune.commands.targets import stem_of, target_spec
    from amptune.config import default_model
    from amptune.tune.device import find_device
    from amptune.tune.options import TuneOptions

    text = args.model or default_model()
    return TuneOptions(
        target=target_spec(text, args.arg, args.input, state=args.state, batch=args.batch),
        out=args.out or Path("amptune-out") / stem_of(text),
        budget=args.budget,
        timeout=args.timeout,
        trial_timeout=args.trial_timeout,
        device=find_device(args.device).name,
        seed=args.seed,
        tolerance=args.tolerance,
        steps=args.steps,
        compile_with=_backend(args.compile),
        existing=args.existing,
    )


def _backend(name: str | None) -> str | None:
    """A backend of torch.compile that this torch has.

    Raises:
        UsageError: it has none of this name.
    """
    if name is None:
        return None
    import torch

    known = torch.compiler.list_backends(exclude_tags=())
    if name not in known:
        from amptune.core.nearest import nearest
        from amptune.errors import UsageError

        hint = f"did you mean {near!r}?" if (near := nearest(name, known)) else f"known: {', '.join(known)}"
        raise UsageError(f"--compile {name!r}: torch.compile has no such backend", hint=hint)
    return name


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0 or math.isinf(value):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1, such as 0.005 for 0.5 %")
    return value
