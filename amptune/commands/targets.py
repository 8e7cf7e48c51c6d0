"""What the commands that take a model share: the arguments that name it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from amptune.errors import UsageError

if TYPE_CHECKING:
    from amptune.capture import TargetSpec


def target_spec(model: str, arguments: list[str], inputs: list[str]) -> TargetSpec:
    """The target of ``MODEL --arg NAME=VALUE --input SHAPE``.

    Raises:
        UsageError: an argument is not NAME=VALUE.
    """
    from amptune.capture import TargetSpec

    for pair in arguments:
        if "=" not in pair:
            raise UsageError(f"--arg {pair!r} is not NAME=VALUE", hint="write it as --arg d_model=512")
    return TargetSpec(model, dict(pair.split("=", 1) for pair in arguments), tuple(inputs))


def stem_of(model: str) -> str:
    """Name of the output folder of a target: the file's stem, or the callable's name."""
    file, _, name = model.partition(":")
    return Path(file).stem if file.endswith(".py") else name or file.rsplit(".", 1)[-1]
