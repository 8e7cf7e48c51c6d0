"""Which share of architectures can be captured, how, and how fast.

    python -m tests.benchmarks.coverage_capture [--suite vision] [--only NAME ...] [--out report.json]

The suite ``transformers`` is the default; ``vision`` takes what is installed of timm and torchvision. An architecture
counts when its small model runs a training forward by itself; it is captured when ``capture`` gives a graph. The ratio
of its matrix products to those that torch's own counter sees in the real forward tells whether something was missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import platform
import sys
import types
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from amptune.capture import Capture, Target, TargetSpec, capture
from amptune.capture.forward import repeatable
from amptune.capture.prepare import prepare_real
from amptune.core.ops import OPS
from amptune.errors import AmptuneError
from tests.benchmarks.architectures import ARCHITECTURES, Architecture
from tests.benchmarks.vision import installed_models

PACKAGES = ("torch", "transformers", "timm", "torchvision")


@dataclasses.dataclass
class Row:
    """What came out for one architecture."""

    model: str
    runs: bool = False
    frontend: str = ""
    sites: int = 0
    seconds: float = 0.0
    flops_ratio: float | None = None
    unknown_ops: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""

    @property
    def captured(self) -> bool:
        """Whether a frontend gave a graph."""
        return bool(self.frontend)


class Buildable(Protocol):
    """What a suite is made of."""

    @property
    def model(self) -> str:
        """Its name."""

    def make_model(self) -> nn.Module:
        """A small model."""

    def make_batch(self) -> Any:
        """A small batch."""


def target_of(architecture: Buildable) -> Target:
    """The architecture as a target; the loss is the model's own or a stand-in."""
    return Target(
        TargetSpec(architecture.model), None, types.ModuleType("architecture"), "callable", architecture.model, "",
        build=architecture.make_model, feed=architecture.make_batch,
        runner=None if isinstance(architecture, Architecture) else _run,
    )  # fmt: skip


def _run(model: nn.Module, batch: Any) -> Any:
    """Detection models take images and targets together, unlike what a pair means to a target."""
    return model(*batch) if isinstance(batch, tuple) else model(**batch) if isinstance(batch, dict) else model(batch)


def measure(architecture: Buildable) -> Row:
    """Run the architecture by itself, then capture it."""
    row = Row(architecture.model)
    try:
        flops = _real_flops(target_of(architecture))
    except Exception as error:  # not our subject: the small configuration does not fit the architecture
        row.error = f"does not run by itself: {type(error).__name__}: {str(error)[:200]}"
        return row
    row.runs = True
    try:
        _fill(row, capture(target_of(architecture)), flops)
    except AmptuneError as error:
        row.error = str(error)
    return row


def _real_flops(target: Target) -> int:
    prepared = prepare_real(target, train=True, notes=[])
    # The counter does not know the CPU's fused attention, so attention runs as plain products.
    with repeatable(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        target.call(prepared.model, prepared.batch)
    return int(counter.get_total_flops())


def _fill(row: Row, found: Capture, flops: int) -> None:
    row.frontend, row.sites, row.seconds, row.notes = found.frontend, len(found.graph), found.seconds, found.notes
    row.flops_ratio = found.graph.flops / flops if flops else None
    row.unknown_ops = tuple(sorted({site.op for site in found.graph if site.op not in OPS and not site.opaque}))


def report(rows: list[Row]) -> dict[str, Any]:
    """The committed form: versions, totals, and one entry an architecture."""
    running = [row for row in rows if row.runs]
    captured = [row for row in running if row.captured]
    return {
        "device": platform.processor() or platform.machine(),
        "versions": {
            name: version(name) for name in ("torch", "transformers", "timm", "torchvision") if find_spec(name)
        },
        "architectures": len(running),
        "captured": len(captured),
        "share": len(captured) / max(1, len(running)),
        "frontends": {name: sum(row.frontend == name for row in captured) for name in {r.frontend for r in captured}},
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def main(argv: list[str]) -> int:
    """Measure, print a line each, write the report; 1 when the share is under --fail-under."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=("transformers", "vision"), default="transformers")
    parser.add_argument("--only", nargs="*", default=[], metavar="MODEL")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--fail-under", type=float, default=0.95)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rows = []
    for architecture in ARCHITECTURES if args.suite == "transformers" else installed_models():
        if not args.only or architecture.model in args.only:
            rows.append(measure(architecture))
            print(_line(rows[-1]), flush=True)
    result = report(rows)
    print(f"captured {result['captured']} of {result['architectures']} ({result['share']:.0%}): {result['frontends']}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if result["share"] >= args.fail_under else 1


def _line(row: Row) -> str:
    if not row.captured:
        return f"{'FAILED' if row.runs else 'skip':8}{row.model:46}{row.error}"
    ratio = "" if row.flops_ratio is None else f"flops x{row.flops_ratio:.3f}"
    unknown = f"unknown: {', '.join(row.unknown_ops)}" if row.unknown_ops else ""
    return f"{row.frontend:12}{row.model:46}{row.sites:6} sites {row.seconds:6.2f} s  {ratio} {unknown}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
