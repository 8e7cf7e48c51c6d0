"""``amptune debug``: trains in a low format and names the first op that overflows, underflows or turns NaN."""

from __future__ import annotations

import argparse
import json
import sys

from amptune.commands.guard import Finished
from amptune.commands.targets import add_state_and_batch, add_target, say, source_lines, surviving, target_spec
from amptune.commands.values import positive_int


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_target(parser)
    parser.add_argument("--dtype", choices=("fp16", "bf16", "fp8"), default="fp16", help="format to train in")
    parser.add_argument("--scaler", choices=("on", "off"), help="loss scaling (default: on for fp16 alone)")
    parser.add_argument("--steps", type=positive_int, default=20, metavar="N", help="training steps (default 20)")
    add_state_and_batch(parser)
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the GPU when there is one)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and of what a step draws (default 0)")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="what goes to stdout")


def run(args: argparse.Namespace) -> int:
    """Debug and report; 0 for a clean run, 1 when something goes wrong in it."""
    return surviving(args, lambda finished: _work(args, finished))


def _work(args: argparse.Namespace, finished: Finished) -> int:
    from amptune import __version__
    from amptune.capture.state import training_state
    from amptune.config import default_model
    from amptune.debug.run import debug
    from amptune.debug.session import DebugOptions
    from amptune.debug.text import render
    from amptune.tune.running.device import find_device

    spec = target_spec(args.model or default_model(), args.arg, args.input, state=args.state, batch=args.batch)
    scaler = args.scaler == "on" if args.scaler else args.dtype == "fp16"
    options = DebugOptions(args.dtype, scaler, args.steps, args.seed, training_state(args.state, "optimizer"))
    result = debug(spec, find_device(args.device), options)
    finished()
    for note in result.notes:
        say(note)
    if args.format == "json":
        print(json.dumps(result.to_json(f"amptune {__version__}"), indent=2))
    else:
        sys.stdout.write(render(result, source_lines))
    return 0 if result.verdict == "clean" else 1
