"""``amptune verify``: a patched model against the original, on the user's own training."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from amptune.commands.guard import Finished
from amptune.commands.targets import (
    add_state_and_batch,
    add_target,
    say,
    say_if_elsewhere,
    stem_of,
    surviving,
    target_spec,
)
from amptune.commands.values import minutes, positive_int, share
from amptune.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_target(parser)
    add_state_and_batch(parser)
    parser.add_argument("patched", nargs="?", type=Path, help="the patched file")
    parser.add_argument("--plan", type=Path, metavar="PLAN.json", help="a plan, in place of a patched file")
    parser.add_argument("--steps", type=positive_int, default=200, metavar="N", help="training steps (default 200)")
    parser.add_argument("--minutes", type=minutes, metavar="M", help="stop after this time")
    parser.add_argument("--tolerance", type=share, default=0.005, metavar="SHARE",
                        help="relative loss gap that is allowed in any case (default 0.005)")  # fmt: skip
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the GPU when there is one)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and of what a step draws (default 0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="output folder (default amptune-out/<model>)")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="what goes to stdout")


def run(args: argparse.Namespace) -> int:
    """Train, write the page and print the verdict: 0 when nothing speaks against the patched model, else 1."""
    return surviving(args, lambda finished: _work(args, finished))


def _work(args: argparse.Namespace, finished: Finished) -> int:
    from amptune import __version__
    from amptune.config import default_model
    from amptune.core.files import check_folder, make_folder, write_all_atomic
    from amptune.core.planfile import read_plan
    from amptune.report.verify_html import verify_page
    from amptune.tune.running.device import find_device
    from amptune.verify.run import VerifyOptions, verify

    if (args.patched is None) == (args.plan is None):
        raise UsageError(
            "verify needs a patched file or --plan", hint="amptune verify model.py model_amptuned.py"
        )  # fmt: skip
    text = args.model or default_model()
    spec = target_spec(text, args.arg, args.input, state=args.state, batch=args.batch)
    if args.plan is not None:
        read_plan(args.plan)  # a plan that cannot be read is said before anything is loaded
    out = args.out or Path("amptune-out") / stem_of(text)
    check_folder(out)
    options = VerifyOptions(args.steps, args.minutes, args.seed, args.tolerance)
    found = verify(spec, args.patched, args.plan, find_device(args.device), options, say, _progress)
    finished()
    if args.plan is not None:
        say_if_elsewhere(read_plan(args.plan))
    for note in found.notes:
        say(note)
    data = found.to_json(f"amptune {__version__}")
    make_folder(out)
    page = out / "verify.html"
    write_all_atomic({page: verify_page(data, found.text()), out / "verify.json": json.dumps(data, indent=2) + "\n"})
    print(json.dumps(data, indent=2) if args.format == "json" else f"{found.text()}\nplot: {page}")
    return 0 if found.passed else 1


def _progress(step: int) -> None:
    if step % 50 == 0 and sys.stderr.isatty():
        print(f"amptune: {step} steps", file=sys.stderr)
