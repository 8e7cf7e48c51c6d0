"""Ops that refuse a number which FP16 cannot hold (G201): what is said to raise does raise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from amptune_rules.graph._examples import model_file

from tests.rules.test_written_otherwise import found

RAISING = (
    "F.pad(h, (1, 1), value=-1e9)",
    "h.clone().fill_diagonal_(-1e9)",
    "h.clone().index_fill_(0, torch.tensor([1]), -1e9)",
    "h.scatter(0, torch.zeros(1, 64, dtype=torch.long), -1e9)",
    "F.threshold(h, 0.0, -1e9)",
    "F.hardtanh(h, -1e9, 1.0)",
    "torch.maximum(h, torch.full_like(h, -1e9))",
    "torch.cat([h, h.new_full((1, 64), -1e9)])",
    "torch.stack([h, torch.full((32, 64), -1e9, dtype=h.dtype)])",
    "torch.maximum(torch.full_like(h, -1e9), torch.ones(64)).sum(-1)",
)
TAKEN = (
    "F.pad(h, (1, 1), value=-1e4)",
    "torch.maximum(h, torch.full_like(h, torch.finfo(h.dtype).min))",
    "torch.maximum(h, torch.full_like(h, float('-inf')))",
    "torch.maximum(h, torch.full((32, 64), -1e9))",
    "torch.cat([h.float(), h.float().new_full((1, 64), -1e9)])",
)


def said(line: str, folder: Path) -> list[str]:
    findings = found("G201", model_file(f"h = self.fc(x)\nreturn {line}"), folder)
    return [each.message for each in findings if "raises in fp16" in each.message]


def run(line: str) -> Any:
    return eval(line, {"torch": torch, "F": F, "h": torch.zeros(32, 64, dtype=torch.half)})


@pytest.mark.parametrize("line", RAISING)
def test_fills_that_raise(line: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="without overflow"):
        run(line)
    (message,) = said(line, tmp_path)
    assert message.startswith("-1e+09 is outside of fp16")


@pytest.mark.parametrize("line", TAKEN)
def test_fills_that_run(line: str, tmp_path: Path) -> None:
    run(line)
    assert not said(line, tmp_path)


def test_a_fill_that_several_ops_read_is_told_once(tmp_path: Path) -> None:
    body = """
    h = self.fc(x)
    best = torch.full_like(h, -1e38)
    for step in range(3):
        best = torch.maximum(best, h - step)
    return best + torch.full_like(h, -1e38).relu()
    """
    messages = [each.message for each in found("G201", model_file(body), tmp_path)]
    assert len([each for each in messages if "this full_like raises" in each]) == 1


ASSIGNED = ("h[h > 0] = -1e9", "h[:, 0] = -1e9", "h[..., 3:] = -70000.0", "h[torch.tensor([1, 2])] = 1e6")
KEPT = (
    "h[h > 0] = -1e4",
    "h[h > 0] = torch.finfo(h.dtype).min",
    "h[:, 0] = float('-inf')",
    "h = h.float(); h[h > 0] = -1e9",
)


@pytest.mark.parametrize("line", [*ASSIGNED, *KEPT])
def test_assignments_that_give_infinity(line: str, tmp_path: Path) -> None:
    """They raise nowhere, and a row that is masked as a whole is NaN then."""
    names = {"torch": torch, "h": torch.ones(32, 64, dtype=torch.half)}
    exec(line, names)
    is_told = line in ASSIGNED
    assert "inf')" in line or bool(names["h"].isinf().any()) == is_told
    findings = found("G201", model_file(f"h = self.fc(x)\n{line}\nreturn h"), tmp_path)
    told = [f for f in findings if "this assignment gives infinity in fp16 (under autocast-fp16)" in f.message]
    assert [f.severity.name for f in told] == ["WARNING"] * is_told
