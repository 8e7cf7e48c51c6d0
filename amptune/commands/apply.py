"""``amptune apply``: a plan that exists, as a patched model, without a search."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from amptune.commands.guard import Finished
from amptune.commands.targets import add_target, say, say_if_elsewhere, stem_of, surviving, target_spec
from amptune.core.planfile import read_plan

if TYPE_CHECKING:
    from amptune.core.plan import Plan


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("plan", type=Path, help="plan.json of an earlier tune, possibly edited")
    add_target(parser, default="the plan's, else that of `amptune tune`")
    parser.add_argument("--out", type=Path, metavar="DIR", help="output folder (default amptune-out/<model>)")


def run(args: argparse.Namespace) -> int:
    """Write the files and print where they lie."""
    return surviving(args, lambda finished: _work(args, finished))


def _work(args: argparse.Namespace, finished: Finished) -> int:
    from amptune.apply.patching import apply_plan_file
    from amptune.config import default_model
    from amptune.core.files import check_folder

    plan = read_plan(args.plan)
    text = args.model or _target_of(plan) or default_model()
    out = args.out or Path("amptune-out") / stem_of(text)
    check_folder(out)
    files = apply_plan_file(args.plan, target_spec(text, args.arg, args.input), out, say)
    finished()
    for path in files.values():
        print(path)
    say_if_elsewhere(plan)
    return 0


def _target_of(plan: Plan) -> str:
    """The model that the plan was made for, where its file is here; else nothing."""
    file = plan.target.partition(":")[0]
    return plan.target if file.endswith(".py") and Path(file).is_file() else ""
