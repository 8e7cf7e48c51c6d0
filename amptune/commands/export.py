"""``amptune export``: a plan in the terms of a trainer or library."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from amptune.commands.targets import say_if_elsewhere
from amptune.core.files import check_file, write_atomic
from amptune.core.planfile import read_plan
from amptune.errors import UsageError
from amptune.export.model import model_file
from amptune.export.registry import TARGETS, target_named


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``export``."""
    parser.add_argument("plan", type=Path, nargs="?", help="plan.json of an earlier tune, possibly edited")
    parser.add_argument("--to", metavar="NAME", help="the trainer or library; --list shows them")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write here (default: standard output)")
    parser.add_argument("--list", action="store_true", help="list the targets")


def run(args: argparse.Namespace) -> int:
    """Write the file; what is lost in it goes to stderr too. The exit code is 0."""
    if args.list:
        _print_list()
        return 0
    if args.plan is None or args.to is None:
        raise UsageError("export needs a plan and --to NAME", hint="amptune export plan.json --to pytorch -o train.py")
    target = target_named(args.to)
    if args.output is not None:
        check_file(args.output)
    plan = read_plan(args.plan)
    if plan.params:
        raise UsageError(
            f"{args.plan} holds the parameters in BF16 (params-{plan.params}), which no export target can say",
            hint="train with the patched model and its make_optimizer in a loop of your own",
        )
    say_if_elsewhere(plan)
    export = target.exporter()(plan, model_file(plan, args.plan))
    if args.output is None:
        sys.stdout.write(export.text)
    else:
        write_atomic(args.output, export.text)
    for note in export.notes:
        print(f"amptune: note: {note}", file=sys.stderr)
    for lost in export.lost:
        print(f"amptune: lost in {target.name}: {lost}", file=sys.stderr)
    return 0


def _print_list() -> None:
    width = max(map(len, TARGETS))
    for target in TARGETS.values():
        print(f"{target.name:{width}}  {target.file:20}  {target.summary}")
