"""What random forwards give for inputs within stated ranges lies in the bounds of the values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from amptune.analyze.runner import enriched
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.autocast import realise
from amptune.core.bounds.intervals import Range
from amptune.core.bounds.ranges import Assumptions, Ranges
from amptune.core.recipes import RECIPES
from tests.analyze.random_programs import INTEGERS, Program

SEEDS = 10
GROUPS = 10
DRAWS = 8


def bounds_of(program: Program, file: Path) -> dict[str, Range]:
    """The bounds of each result of a program."""
    file.write_text(program.text)
    captured = capture(load_target(TargetSpec(str(file))), frontends=("record-fake",))
    graph = enriched(captured)
    places = [str(node.target) for node in captured.graph_module.graph.nodes if node.op == "placeholder"]
    stated = [Range(float(low), float(high)) for low, high in (*program.stated, INTEGERS)]
    assumed = Assumptions(inputs=dict(zip(places, stated, strict=False)))
    ranges = Ranges(graph, realise(graph, RECIPES["fp32"]), assumed)
    lines = program.text.splitlines()
    found = {}
    for site in graph:
        name = lines[site.location.line - 1].split(" = ")[0].strip() if site.location else ""
        if name in program.results:
            found[name] = ranges[site.id]
    return found


def seen(program: Program) -> dict[str, tuple[float, float]]:
    """The extremes of each result over several inputs, up to the first number that is none."""
    names: dict[str, Any] = {}
    exec(program.text, names)
    model = names["make_model"]()
    found: dict[str, tuple[float, float]] = {}
    for _ in range(DRAWS):
        inputs = program.inputs()
        try:
            with torch.no_grad():
                outputs = model(*inputs)
        except (RuntimeError, IndexError):
            continue  # as a mask that holds nowhere leaves nothing to reduce
        for name, output in zip(program.results, outputs, strict=True):
            if not output.numel() or not bool(output.isfinite().all()):
                break
            low, high = found.get(name, (math.inf, -math.inf))
            found[name] = min(low, float(output.min())), max(high, float(output.max()))
    return found


@pytest.mark.parametrize("group", range(GROUPS))
def test_bounds_hold_for_random_programs(group: int, tmp_path: Path) -> None:
    torch.manual_seed(group)
    for seed in range(group * SEEDS, (group + 1) * SEEDS):
        program = Program(seed)
        bounds = bounds_of(program, tmp_path / f"model{seed}.py")
        for name, (low, high) in seen(program).items():
            found = bounds[name]
            room = 1e-6 * (1 + max(abs(low), abs(high)))
            assert found.low - room <= low <= high <= found.high + room, (seed, name, program.text)
