"""What random forwards hold that write into views and copies of a tensor lies in the bounds of the values."""

from __future__ import annotations

from pathlib import Path

import pytest

from amptune.analyze.runner import enriched
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.autocast import realise
from amptune.core.bounds.intervals import Range
from amptune.core.bounds.ranges import Ranges
from amptune.core.recipes import RECIPES
from tests.analyze.random_writes import Writes

SEEDS, GROUPS = 20, 10


def bounds_of(program: Writes, file: Path, frontend: str) -> list[Range]:
    """The bounds of each tensor that a forward returns."""
    file.write_text(program.text)
    captured = capture(load_target(TargetSpec(str(file))), frontends=(frontend,))
    enriched(captured)
    ranges = Ranges(captured.graph, realise(captured.graph, RECIPES["fp32"]))
    last = [site for site in captured.graph if site.location and site.location.line == program.last]
    return [ranges[site.id] for site in last if site.op == "mul"]


@pytest.mark.parametrize("group", range(GROUPS))
def test_bounds_hold_for_random_writes(group: int, tmp_path: Path) -> None:
    for seed in range(group * SEEDS, (group + 1) * SEEDS):
        program = Writes(seed)
        bounds = bounds_of(program, tmp_path / f"model{seed}.py", "record-fake")
        for name, found, output in zip(program.names, bounds, program.outputs(), strict=True):
            if not output.numel() or not bool(output.isfinite().all()):
                break
            low, high = float(output.min()), float(output.max())
            room = 1e-5 * (1 + max(abs(low), abs(high)))
            assert found.low - room <= low <= high <= found.high + room, (seed, name, program.text)
