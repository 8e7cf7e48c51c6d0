"""``amptune init``: writes the functions that tell amptune how to build, feed and judge a model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from amptune.commands.guard import Finished
from amptune.commands.targets import surviving
from amptune.errors import UsageError

if TYPE_CHECKING:
    from amptune.capture import Target


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", help="model.py, model.py:Name or package.module:Class")
    parser.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE", help="constructor argument")
    parser.add_argument("--input", action="append", default=[], metavar="SHAPE[:DTYPE[:HIGH]]",
                        help="model input, such as 16x1024:int64:50257")  # fmt: skip
    parser.add_argument("--write", action="store_true", help="append to the file (default: print)")


def run(args: argparse.Namespace) -> int:
    """Print the functions, or append them to the file."""
    return surviving(lambda finished: _work(args, finished))


def _work(args: argparse.Namespace, finished: Finished) -> int:
    from amptune.capture import TargetSpec, load_target
    from amptune.capture.skeleton import functions_source

    arguments = dict(_pair(text) for text in args.arg)
    target = load_target(TargetSpec(args.model, arguments, tuple(args.input)))
    source = target.path.read_text() if target.path else ""
    text = functions_source(target, source)
    for note in target.notes:
        print(f"note: {note}", file=sys.stderr)
    if args.write:
        _append(target, source, text)
        finished()
    else:
        finished()
        sys.stdout.write(text.lstrip("\n"))
    return 0


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"--arg {text}: expected NAME=VALUE", hint="for example --arg d_model=512")
    return name, value


def _append(target: Target, source: str, text: str) -> None:
    """Put the functions at the end of the file, if the file still loads with them."""
    from amptune.capture import load_target
    from amptune.core.files import write_atomic

    if target.path is None:
        raise UsageError("--write needs a file; a package's model has none", hint="print it into a file of your own")
    new = source.rstrip("\n") + "\n" + text
    load_target(type(target.spec)(str(target.path)), source=new)
    write_atomic(Path(target.path), new)
    print(f"wrote the functions to {target.path}: check the batch and the loss", file=sys.stderr)
