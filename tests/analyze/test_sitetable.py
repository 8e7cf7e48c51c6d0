"""The notes beside the sites of the terminal's table: what is said of an op has to hold at the site."""

from __future__ import annotations

from pathlib import Path

import pytest
from amptune_rules.graph._examples import model_file

from amptune.analyze.sitetable import site_rows
from amptune.core.rule import Example
from tests.rules.test_graph_rules import RULES, judge


def note(body: str, op: str, folder: Path) -> str:
    analysis = judge(Example("a model", model_file(body)), folder, RULES[0])
    return next(row.note for row in site_rows(analysis.sites, "autocast-bf16") if row.op == op)


@pytest.mark.parametrize(
    ("body", "op", "expected"),
    [
        ("return torch.exp(self.fc(x))", "exp", "exceeds 65504"),
        ("return torch.exp(-self.fc(x).square())", "exp", "rounding its input"),
        ("return self.fc(x).pow(2)", "pow", "from |x| > 255.9"),
        ("return self.fc(x).pow(3)", "pow", "from |x| > 40.31"),
        ("return self.fc(x).abs().pow(0.5)", "pow", "gradient at zero is infinite"),
        ("return torch.tanh(self.fc(x)).pow(2)", "pow", ""),
        ("return torch.log(self.fc(x).abs())", "log", "-inf"),
        ("return torch.log(1 + self.fc(x).abs())", "log", ""),
        ("return torch.tanh(self.fc(x)).var(-1)", "var", ""),
        ("return self.fc(x).view(32, 16, 4).sum(-1)", "sum", ""),
    ],
)
def test_the_note_is_about_the_site(body: str, op: str, expected: str, tmp_path: Path) -> None:
    found = note(body, op, tmp_path)
    assert expected in found if expected else not found


def test_what_a_fix_gives_is_said_of_the_format_that_the_gpu_has(tmp_path: Path) -> None:
    source = model_file(
        "return self.conv(x).flatten(1)", init="self.conv = nn.Conv2d(64, 128, 3)", batch="torch.randn(64, 64, 64, 64)"
    )
    analysis = judge(Example("a model", source, options={"gpus": ("v100",)}), tmp_path, RULES[0])
    (row,) = [row for row in site_rows(analysis.sites, "autocast-fp16") if row.op == "conv2d"]
    fixed = row.milliseconds["autocast-fp16+fixed"]
    assert row.note == f"contiguous: {fixed:.3f} when fixed"
    assert fixed < row.milliseconds["autocast-fp16"]


@pytest.mark.parametrize(
    ("layer", "batch", "expected"),
    [
        ("nn.Linear(1024, 1021)", "torch.randn(4096, 1024)", "N = 1021 misaligned: "),
        ("nn.Linear(1021, 1024)", "torch.randn(4096, 1021)", "K = 1021 misaligned: "),
    ],
)
def test_a_misaligned_site_names_its_odd_size(layer: str, batch: str, expected: str, tmp_path: Path) -> None:
    source = model_file("return self.fc(x)", init=f"self.fc = {layer}", batch=batch)
    analysis = judge(Example("a model", source), tmp_path, RULES[0])
    (row,) = [row for row in site_rows(analysis.sites, "autocast-bf16") if row.op == "linear"]
    assert row.note.startswith(expected)


def test_a_recipe_that_does_not_run_has_no_part_in_the_table(tmp_path: Path) -> None:
    """BCE raises under autocast: what padding would give there is nobody's gain."""
    source = model_file(
        "return self.fc(x).sigmoid()", init="self.fc = nn.Linear(1021, 1024)", batch="torch.rand(4096, 1021)",
        loss="F.binary_cross_entropy(output, torch.rand_like(output))",
    )  # fmt: skip
    analysis = judge(Example("a model", source), tmp_path, RULES[0])
    stopped = ("autocast-bf16", "autocast-fp16")
    rows = site_rows(analysis.sites, "autocast-bf16", stopped)
    assert not any(name.startswith("autocast") for row in rows for name in row.milliseconds)
    assert not [row.note for row in rows if "when fixed" in row.note]
