"""Zeros of the batch, buffers before their first write, and writes of another dtype, in models nobody had seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from amptune_rules.graph._examples import model_file

from amptune.core.finding import Severity
from tests.rules.test_written_otherwise import found

COUNTS = "torch.arange(2048.0).view(32, 64) % 7"


@pytest.mark.parametrize(
    ("body", "batch", "count"),
    [
        ("return torch.where(x > 0, torch.log(x * self.gain), 0.0)", COUNTS, 1),
        ("return torch.where(x > 0, torch.log(x * self.gain), 0.0)", f"1 + {COUNTS}", 0),
        ("return x * torch.log(x / F.softplus(self.fc(x)).clamp(min=1e-6))", COUNTS, 1),
        ("return x * (torch.log(torch.where(x > 0, x, 1.0)) - F.logsigmoid(self.fc(x)))", COUNTS, 0),
        ("return torch.log(x * self.gain + 1e-3)", COUNTS, 0),
    ],
)
def test_a_logarithm_of_what_is_zero_where_the_batch_is(body: str, batch: str, count: int, tmp_path: Path) -> None:
    init = "self.fc = nn.Linear(64, 64)\nself.gain = nn.Parameter(torch.ones(64))"
    assert len(found("G204", model_file(body, init=init, batch=batch), tmp_path)) == count


@pytest.mark.parametrize(
    ("start", "order", "count"),
    [("zeros", "read, write", 1), ("ones", "read, write", 0), ("zeros", "write, read", 0)],
)
def test_a_buffer_of_zeros_that_is_divided_by_before_it_is_written(
    start: str, order: str, count: int, tmp_path: Path
) -> None:
    steps = {"read": "y = x / self.count", "write": "with torch.no_grad():\n    self.count.add_(32)"}
    body = "\n".join([*(steps[each] for each in order.split(", ")), "return self.fc(y)"])
    init = f"self.fc = nn.Linear(64, 64)\nself.register_buffer('count', torch.{start}(()))"
    told = [each for each in found("G205", model_file(body, init=init), tmp_path) if "first step" in each.message]
    assert len(told) == count


def test_classes_that_the_batch_does_not_have_are_divided_by(tmp_path: Path) -> None:
    body = "member = F.one_hot(t, 64).float()\nreturn ((member * self.fc(x)).sum(0) / member.sum(0)).mean()"
    (finding,) = found(
        "G205", model_file(body, takes="x, t", batch="(torch.randn(32, 64), torch.arange(32))"), tmp_path
    )
    assert "sum" in finding.message


@pytest.mark.parametrize(
    ("length", "filled", "after", "count"),
    [
        ("10", "float('-inf')", "", 1),
        ("20", "float('-inf')", "", 0),
        ("10", "-1e4", "", 0),
        ("10", "float('-inf')", ".nan_to_num()", 0),
    ],
)
def test_a_row_of_scores_that_the_mask_of_the_batch_closes(
    length: str, filled: str, after: str, count: int, tmp_path: Path
) -> None:
    body = f"""
    scores = self.fc(x).float().view(32, 4, 16)
    hidden = (ids == 0).view(32, 4, 16)
    return scores.masked_fill(hidden, {filled}).softmax(-1){after}
    """
    batch = f"(torch.randn(32, 64), torch.where(torch.arange(64) % 16 < {length} - 10, 1, 0).expand(32, 64))"
    source = model_file(body, takes="x, ids", batch=batch)
    assert len(found("G205", source, tmp_path)) == count


@pytest.mark.parametrize(("taken", "count"), [("self.fc(x)", 1), ("self.fc(x).float()", 0)])
def test_an_assignment_by_a_mask_takes_one_dtype(taken: str, count: int, tmp_path: Path) -> None:
    body = f"y = torch.zeros(32, 64, device=x.device)\ny[kept] = {taken}.flatten()[:1024]\nreturn y"
    batch = "(torch.randn(32, 64), torch.arange(2048).view(32, 64) % 2 == 0)"
    told = found("G301", model_file(body, takes="x, kept", batch=batch), tmp_path)
    assert [each.severity for each in told] == [Severity.ERROR] * count


@pytest.mark.parametrize(("phase", "count"), [("self.fc(x)", 1), ("self.fc(x).float()", 0)])
def test_magnitude_and_phase_have_one_dtype(phase: str, count: int, tmp_path: Path) -> None:
    assert len(found("G301", model_file(f"return torch.polar(x.exp(), {phase}).abs()"), tmp_path)) == count


@pytest.mark.parametrize(
    ("named", "count"),
    [
        ("NARROW = torch.bfloat16\n", 1),
        ("NARROW = torch.float32\n", 0),
        ("NARROW = torch.zeros(()).dtype\nNARROW = torch.bfloat16\n", 0),
    ],
)
def test_a_dtype_that_the_file_names_at_its_top_is_a_dtype(named: str, count: int, tmp_path: Path) -> None:
    init = "self.fc = nn.Linear(64, 64, dtype=NARROW)\nself.scale = nn.Parameter(torch.ones(64))"
    source = model_file("return torch.tanh(self.fc(x.to(NARROW)) * self.scale).sin()", init=init)
    head, _, rest = source.partition("\n\n\nclass")
    assert len(found("G306", f"{head}\n\n{named}\n\nclass{rest}", tmp_path)) == count


@pytest.mark.parametrize(
    ("start", "moved", "count"),
    [
        ("torch.full_like(s[:, 0], float('-inf'))", "F.pad(a[:, :-1], (1, 0), value=float('-inf'))", 1),
        ("torch.full_like(s[:, 0], -1e4)", "F.pad(a[:, :-1], (1, 0), value=-1e4)", 0),
        ("s[:, 0].clone()", "F.pad(a[:, :-1], (1, 0), value=float('-inf'))", 0),
    ],
)
def test_paths_that_start_nowhere(start: str, moved: str, count: int, tmp_path: Path) -> None:
    body = f"""
    s = self.fc(x).float().view(8, 4, 64).log_softmax(-1)
    a = {start}
    a[:, 0] = s[:, 0, 0]
    for t in range(1, 4):
        a = torch.logaddexp(a, {moved}) + s[:, t]
    return a[:, -1]
    """
    assert len(found("G204", model_file(body), tmp_path)) == count
