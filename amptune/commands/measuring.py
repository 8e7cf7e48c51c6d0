"""Arguments that the measuring commands (tune, bench) share, and the settings that they give."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amptune.commands.targets import add_state_and_batch

if TYPE_CHECKING:
    from amptune.tune.options import TuneOptions


def add_model(parser: argparse.ArgumentParser) -> None:
    """What to measure."""
    parser.add_argument("model", nargs="?", help="model.py, model.py:Name or package.module:callable "
                        "(default: [tool.amptune] model, else model.py)")  # fmt: skip
    parser.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE", help="constructor argument")
    parser.add_argument("--input", action="append", default=[], metavar="SHAPE[:DTYPE[:HIGH]]",
                        help="model input, such as 16x1024:int64:50257")  # fmt: skip
    add_state_and_batch(parser)


def add_measurement(parser: argparse.ArgumentParser) -> None:
    """How a candidate is measured and judged."""
    parser.add_argument("--trial-timeout", type=seconds, default=600.0, metavar="SECONDS",
                        help="a trial that takes longer has hung (default 600)")  # fmt: skip
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the GPU when there is one)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batch order and sampler (default 0)")
    parser.add_argument("--tolerance", type=share, default=0.005, metavar="SHARE",
                        help="largest loss gap to FP32 that is still valid (default 0.005)")  # fmt: skip
    parser.add_argument("--steps", type=positive_int, default=20, metavar="K",
                        help="training steps a trial is judged on (default 20)")  # fmt: skip
    parser.add_argument("--params", choices=("bf16",),
                        help="also measure the recipes with parameters in BF16: params-bf16 steps on them, "
                        "params-bf16-master on FP32 copies in the optimizer; stochastic rounding is not among them",
                        )  # fmt: skip
    parser.add_argument("--compile", nargs="?", const="inductor", metavar="BACKEND",
                        help="measure under torch.compile; the backend is inductor unless named")  # fmt: skip


def options_of(args: argparse.Namespace, **more: Any) -> TuneOptions:
    """The settings; ``more`` are fields that only one of the commands has.

    Raises:
        UsageError: the device or the backend is not there.
    """
    from amptune.commands.targets import stem_of, target_spec
    from amptune.config import default_model
    from amptune.tune.device import find_device
    from amptune.tune.options import TuneOptions

    text = args.model or default_model()
    settings: dict[str, Any] = {
        "target": target_spec(text, args.arg, args.input, state=args.state, batch=args.batch),
        "out": Path("amptune-out") / stem_of(text),
        "trial_timeout": args.trial_timeout,
        "device": find_device(args.device).name,
        "seed": args.seed,
        "tolerance": args.tolerance,
        "steps": args.steps,
        "compile_with": _backend(args.compile),
        "params": args.params,
    }
    return TuneOptions(**settings | more)


def _backend(name: str | None) -> str | None:
    """A backend of torch.compile that this torch has.

    Raises:
        UsageError: it has none of this name.
    """
    if name is None:
        return None
    import torch

    known = torch.compiler.list_backends(exclude_tags=())
    if name not in known:
        from amptune.core.nearest import nearest
        from amptune.errors import UsageError

        hint = f"did you mean {near!r}?" if (near := nearest(name, known)) else f"known: {', '.join(known)}"
        raise UsageError(f"--compile {name!r}: torch.compile has no such backend", hint=hint)
    return name


def positive_int(text: str) -> int:
    """An argument that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def seconds(text: str) -> float:
    """An argument that is a time."""
    value = float(text)
    if not value > 0 or math.isinf(value):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def share(text: str) -> float:
    """An argument between 0 and 1."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1, such as 0.005 for 0.5 %")
    return value


def size(text: str) -> int:
    """Bytes of a size such as 40GiB, 500MB or 1e9."""
    units = {"": 1, "b": 1} | {f"{p}b": 10 ** (3 * i) for i, p in enumerate("kmgt", 1)}
    units |= {f"{p}ib": 2 ** (10 * i) for i, p in enumerate("kmgt", 1)}
    found = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*([a-z]*)", text.strip().lower())
    if found is None or found[2] not in units or found[1].count(".") > 1 or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text} is not a size such as 40GiB or 500MB")
    return int(float(found[1]) * units[found[2]])
