"""``amptune init``: writes the functions that tell amptune how to build, feed and judge a model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from amptune.commands.guard import Finished
from amptune.commands.targets import add_construction, surviving, target_spec
from amptune.errors import UsageError

if TYPE_CHECKING:
    from amptune.capture import Target


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", help="model.py, model.py:Name or package.module:Class")
    add_construction(parser)
    parser.add_argument("--write", action="store_true", help="append to the file (default: print)")


def run(args: argparse.Namespace) -> int:
    """Print the functions, or append them to the file."""
    return surviving(args, lambda finished: _work(args, finished))


def _work(args: argparse.Namespace, finished: Finished) -> int:
    from amptune.capture import load_target
    from amptune.capture.skeleton import functions_source

    target = load_target(target_spec(args.model, args.arg, args.input))
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
