"""Dtypes that the propagation predicts against those of a real forward under CPU autocast, for each architecture.

    python -m tests.benchmarks.autocast_check [NAME ...]

Each small architecture is captured from a real forward in FP32, its dtypes under BF16 autocast are predicted, and the
same forward is then recorded inside ``torch.autocast("cpu")``. Compared are the floating outputs of all calls; those
whose dtype the prediction calls unknown are counted apart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from amptune.analyze.runner import enriched
from amptune.capture import Capture, capture
from amptune.core.autocast import UNKNOWN, realise
from amptune.core.recipes import RECIPES
from amptune.errors import AmptuneError
from tests.benchmarks.architectures import ARCHITECTURES, Architecture
from tests.benchmarks.coverage_capture import target_of


@dataclasses.dataclass
class Agreement:
    """Counts of one architecture, and its first few errors."""

    model: str
    known: int = 0
    unknown: int = 0
    wrong: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)
    error: str = ""


def compare(architecture: Architecture) -> Agreement:
    """Predict and record one architecture."""
    result = Agreement(architecture.model)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            plain, real = _captured(architecture, autocast=False), _captured(architecture, autocast=True)
    except AmptuneError as error:
        result.error = error.message
        return result
    calls = enriched(plain)
    predicted = realise(calls, RECIPES["autocast-bf16"], "cpu")
    for site in real.by_calls():
        if site.id in calls:
            for expected, tensor in zip(predicted[site.id].outputs, site.outputs, strict=False):
                if tensor.is_floating:
                    _count(result, f"{site.id} ({site.op})", expected, tensor.dtype)
    return result


def _captured(architecture: Architecture, *, autocast: bool) -> Capture:
    def run(model: nn.Module, batch: Mapping[str, Any]) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return model(**batch)

    torch.manual_seed(0)
    target = target_of(architecture)
    if autocast:
        target.runner = run
    return capture(target, frontends=("record-real",))


def _count(result: Agreement, name: str, expected: str, actual: str) -> None:
    if expected == UNKNOWN:
        result.unknown += 1
        return
    result.known += 1
    if expected != actual:
        result.wrong += 1
        result.examples.append(f"{name}: predicted {expected}, is {actual}")


def main() -> int:
    """Print one line for each architecture, and the share over all."""
    names = sys.argv[1:]
    chosen = [each for each in ARCHITECTURES if not names or each.model in names]
    results = [compare(architecture) for architecture in chosen]
    for each in results:
        said = each.error or "; ".join(each.examples[:2])
        print(f"{each.model:45s} {each.known:5d} known {each.unknown:4d} unknown {each.wrong:4d} wrong  {said}")
    known, wrong = sum(each.known for each in results), sum(each.wrong for each in results)
    unknown = sum(each.unknown for each in results)
    print(f"{1 - wrong / max(known, 1):.2%} of {known} outputs right; {unknown} unknown")
    return 0


if __name__ == "__main__":
    sys.exit(main())
