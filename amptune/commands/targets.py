"""What the commands that take a model share: the arguments that name it, and that it may end its process."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from amptune.commands.guard import Finished, guarded
from amptune.errors import UsageError

if TYPE_CHECKING:
    from amptune.capture import TargetSpec
    from amptune.core.plan import Plan


PATIENCE_SECONDS = 3.0
"""How long a Ctrl-C has to end the worker and to leave the study as it is before it is passed on once more."""


def surviving(args: argparse.Namespace, work: Callable[[Finished], int]) -> int:
    """Run ``work``, which calls ``Finished`` when the last of the user's code has run, and return its exit code.

    Raises:
        WorkError: the model ended the process, by ``os._exit`` or a crash in C code.
    """
    return guarded(None, work, patience=PATIENCE_SECONDS, fork=args.own_process)


def add_target(parser: argparse.ArgumentParser, default: str = "[tool.amptune] model, else model.py") -> None:
    """Add the arguments that name a model, which may be left out, and say how to build and feed it.

    ``default``: which one it is then, in words.
    """
    parser.add_argument(
        "model", nargs="?", help=f"model.py, model.py:Name or package.module:callable (default: {default})"
    )
    add_construction(parser)


def add_construction(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how to build and feed a model."""
    parser.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE", help="constructor argument")
    parser.add_argument("--input", action="append", default=[], metavar="SHAPE[:DTYPE[:HIGH]]",
                        help="model input, such as 16x1024:int64:50257")  # fmt: skip


def add_state_and_batch(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that start a run from a moment of the user's own training."""
    parser.add_argument(
        "--state", metavar="CKPT.pt", help="weights to start from: a state_dict, or a checkpoint with one"
    )
    parser.add_argument("--batch", metavar="BATCH.pt", help="the batch to use, as torch.save wrote it")


def say(text: str) -> None:
    """A note to the user, on stderr."""
    print(f"amptune: note: {text}", file=sys.stderr, flush=True)


def say_if_elsewhere(plan: Plan) -> None:
    """Say that a plan was measured on another GPU or torch than are here."""
    from amptune.core.plan import elsewhere

    words = elsewhere(plan.measured_on, _here())
    if words:
        say(words)


def _here() -> dict[str, str]:
    """GPU and torch of this machine, as far as they are known without importing torch, which takes seconds."""
    facts: dict[str, str] = {}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        facts["torch"] = importlib.metadata.version("torch")
    if "torch" in sys.modules:
        from amptune.tune.running.device import find_device

        facts["gpu"] = str(find_device(None).describe()["gpu"])
    return facts


def source_lines(path: str) -> list[str]:
    """The lines of a source file; [] for one that cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def target_spec(
    model: str, arguments: list[str], inputs: list[str], *, state: str | None = None, batch: str | None = None
) -> TargetSpec:
    """The target of ``MODEL --arg NAME=VALUE --input SHAPE``.

    Raises:
        UsageError: an argument is not NAME=VALUE.
    """
    from amptune.capture import TargetSpec

    for pair in arguments:
        if not pair.partition("=")[0].isidentifier() or "=" not in pair:
            raise UsageError(f"--arg {pair!r} is not NAME=VALUE", hint="write it as --arg d_model=512")
    return TargetSpec(model, dict(pair.split("=", 1) for pair in arguments), tuple(inputs), state, batch)


def stem_of(model: str) -> str:
    """Name of the output folder of a target: the file's stem, or the callable's name."""
    file, _, name = model.partition(":")
    return Path(file).stem if file.endswith(".py") else name or file.rsplit(".", 1)[-1]
