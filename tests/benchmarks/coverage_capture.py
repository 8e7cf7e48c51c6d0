"""Which share of architectures can be captured, how, and how fast.

    python -m tests.benchmarks.coverage_capture [--only NAME ...] [--out report.json]

An architecture counts when its small model runs a training forward by itself. It is captured when ``capture`` gives a
graph whose matrix products are those that torch's own counter sees in a real forward.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import platform
import random
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from amptune.capture import Capture, Target, TargetSpec, capture
from amptune.core.ops import OPS
from amptune.errors import AmptuneError
from tests.benchmarks.architectures import ARCHITECTURES, Architecture


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


def target_of(architecture: Architecture) -> Target:
    """The architecture as a target; the loss is the model's own or a stand-in."""
    module = types.ModuleType("architecture")
    return Target(
        TargetSpec(architecture.model), None, module, "callable", architecture.model, "",
        build=architecture.make_model, feed=architecture.make_batch,
    )  # fmt: skip


def measure(architecture: Architecture) -> Row:
    """Run the architecture by itself, then capture it."""
    row = Row(architecture.model)
    try:
        flops = _real_flops(architecture)
    except Exception as error:  # not our subject: the small configuration does not fit the architecture
        row.error = f"does not run by itself: {type(error).__name__}: {str(error)[:200]}"
        return row
    row.runs = True
    try:
        _fill(row, capture(target_of(architecture)), flops)
    except AmptuneError as error:
        row.error = str(error)
    return row


def _real_flops(architecture: Architecture) -> int:
    torch.manual_seed(0)
    random.seed(0)
    model, batch = architecture.make_model().train(), architecture.make_batch()
    for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        for place in (model.config, *model.modules()):
            if isinstance(getattr(place, name, None), float):
                setattr(place, name, 0.0)
    # The counter does not know the CPU's fused attention, so attention runs as plain products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**batch)
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
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "architectures": len(running),
        "captured": len(captured),
        "share": len(captured) / max(1, len(running)),
        "frontends": {name: sum(row.frontend == name for row in captured) for name in {r.frontend for r in captured}},
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def main(argv: list[str]) -> int:
    """Measure, print a line each, write the report; 1 when the share is under --fail-under."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], metavar="MODEL")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--fail-under", type=float, default=0.95)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rows = []
    for architecture in ARCHITECTURES:
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
