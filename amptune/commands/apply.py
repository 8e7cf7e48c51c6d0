"""``amptune apply``: a plan that exists, as a patched model, without a search."""

from __future__ import annotations

import argparse
from pathlib import Path

from amptune.commands.guard import Finished
from amptune.commands.targets import add_target, say, say_if_elsewhere, stem_of, surviving, target_spec
from amptune.core.planfile import read_plan


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("plan", type=Path, help="plan.json of an earlier tune, possibly edited")
    add_target(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="output folder (default amptune-out/<model>)")


def run(args: argparse.Namespace) -> int:
    """Write the files and print where they lie."""
    return surviving(lambda finished: _work(args, finished))


def _work(args: argparse.Namespace, finished: Finished) -> int:
    from amptune.apply.patching import apply_plan_file
    from amptune.config import default_model
    from amptune.core.files import check_folder

    text = args.model or default_model()
    out = args.out or Path("amptune-out") / stem_of(text)
    check_folder(out)
    files = apply_plan_file(args.plan, target_spec(text, args.arg, args.input), out, say)
    finished()
    for path in files.values():
        print(path)
    say_if_elsewhere(read_plan(args.plan))
    return 0
