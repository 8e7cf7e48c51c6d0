"""What the commands that take a model share: the arguments that name it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from amptune.errors import UsageError

if TYPE_CHECKING:
    from amptune.capture import TargetSpec


def add_state_and_batch(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that start a run from a moment of the user's own training."""
    parser.add_argument(
        "--state", metavar="CKPT.pt", help="weights to start from: a state_dict, or a checkpoint with one"
    )
    parser.add_argument("--batch", metavar="BATCH.pt", help="the batch to use, as torch.save wrote it")


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
        if "=" not in pair:
            raise UsageError(f"--arg {pair!r} is not NAME=VALUE", hint="write it as --arg d_model=512")
    return TargetSpec(model, dict(pair.split("=", 1) for pair in arguments), tuple(inputs), state, batch)


def stem_of(model: str) -> str:
    """Name of the output folder of a target: the file's stem, or the callable's name."""
    file, _, name = model.partition(":")
    return Path(file).stem if file.endswith(".py") else name or file.rsplit(".", 1)[-1]
