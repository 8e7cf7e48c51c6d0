"""Arguments that the measuring commands (tune, bench) share, and the settings that they give."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amptune.commands.values import positive_int, seconds, share

if TYPE_CHECKING:
    from amptune.tune.workers.options import TuneOptions


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
    from amptune.tune.running.device import find_device
    from amptune.tune.workers.options import TuneOptions

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
