"""Counts in 16 bits that are assigned anew rather than added to in place, or that one forward makes (G220)."""

from __future__ import annotations

from pathlib import Path

import pytest
from amptune_rules.graph._examples import model_file

from tests.rules.test_written_otherwise import found

INIT = (
    "self.fc = nn.Linear(64, 64)\nself.register_buffer('rounds', torch.zeros((), dtype={dtype}))\n"
    "self.register_buffer('fired', torch.zeros(64, dtype={dtype}))"
)


@pytest.mark.parametrize(
    ("body", "dtype", "count"),
    [
        ("self.rounds = self.rounds + 1\nreturn self.fc(x) / self.rounds.float()", "torch.bfloat16", 1),
        ("more = self.rounds + x.shape[0]\nself.rounds = more\nreturn self.fc(x) / more.float()", "torch.bfloat16", 1),
        (
            "self.fired = (self.fired + (x > 0).sum(0)).to(self.fired.dtype)\nreturn self.fc(x) * (self.fired > 2)",
            "torch.float16",
            1,
        ),
        ("self.rounds.data = torch.add(self.rounds, 1)\nreturn self.fc(x) * self.rounds.float()", "torch.float16", 1),
        ("self.rounds, last = self.rounds + 1, self.rounds\nreturn self.fc(x) / last.float()", "torch.bfloat16", 1),
        ("self.rounds: object = self.rounds + 1\nreturn self.fc(x) / self.rounds.float()", "torch.bfloat16", 1),
        ("last, self.last = self.rounds, self.rounds + 1\nreturn self.fc(x) / last.float()", "torch.bfloat16", 0),
        ("self.rounds = self.rounds + 1\nreturn self.fc(x) / self.rounds.float()", "torch.float32", 0),
        ("self.rounds = self.rounds + 1\nreturn self.fc(x) / self.rounds.float()", "torch.long", 0),
        ("self.last = self.rounds + 1\nreturn self.fc(x) / self.last.float()", "torch.bfloat16", 0),
        ("self.rounds = 0.5 * (self.rounds + 1)\nreturn self.fc(x) + self.rounds.float()", "torch.bfloat16", 0),
        ("now = self.rounds + 1\nreturn self.fc(x) / now.float()", "torch.bfloat16", 0),
    ],
)
def test_a_count_that_is_assigned_anew(body: str, dtype: str, count: int, tmp_path: Path) -> None:
    source = model_file(body, init=INIT.format(dtype=dtype))
    assert len([each for each in found("G220", source, tmp_path) if "a count in" in each.message]) == count


@pytest.mark.parametrize(("by", "last"), [(1, 256), (32, 8192), (3, 1024)])
def test_where_a_count_stops(by: int, last: int, tmp_path: Path) -> None:
    body = f"self.rounds = self.rounds + {by}\nreturn self.fc(x) / self.rounds.float()"
    (finding,) = found("G220", model_file(body, init=INIT.format(dtype="torch.bfloat16")), tmp_path)
    assert finding.evidence["most"] == last


CROWDED = "torch.arange(64 * 64).view(64, 64) % 64 * (torch.arange(64 * 64).view(64, 64) % 2)"


@pytest.mark.parametrize(
    ("body", "dtype", "severities"),
    [
        ("seen.index_add_(0, x.flatten(), torch.ones(4096, dtype=D))", "torch.bfloat16", ["warning"]),
        ("seen = seen.scatter_add(0, x.flatten(), (x.flatten() >= 0).to(D))", "torch.bfloat16", ["warning"]),
        ("seen.scatter_add_(0, (x + self.fc.weight.argmax()).flatten() % 64, torch.ones(4096, dtype=D))",
         "torch.float16", ["info"]),
        ("seen.index_add_(0, x.flatten(), torch.ones(4096, dtype=D))", "torch.float16", []),
        ("seen.index_add_(0, x.flatten(), torch.ones(4096, dtype=D))", "torch.float32", []),
        ("seen.index_add_(0, x.flatten(), torch.full((4096,), 0.5, dtype=D))", "torch.bfloat16", []),
        ("seen.index_add_(0, x[0], torch.ones(64, dtype=D))", "torch.bfloat16", []),
    ],
)  # fmt: skip
def test_a_count_of_one_forward(body: str, dtype: str, severities: list[str], tmp_path: Path) -> None:
    code = f"seen = torch.zeros(64, dtype=D)\n{body}\nreturn self.fc(torch.log1p(seen.float()))".replace("D", dtype)
    told = found("G220", model_file(code, batch=CROWDED), tmp_path)
    assert [each.severity.name.lower() for each in told] == severities
