"""What breaks where one number comes to zero is one finding."""

from __future__ import annotations

from pathlib import Path

import pytest
from amptune_rules.graph._examples import model_file

from amptune.analyze.runner import Question, analyze
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.finding import Finding, Severity
from amptune.core.hardware import gpus_named

BODY = """
a, b = F.softplus(self.fc(x).float()), F.softplus(self.fc(x + 1).float())
z = x / a
w = torch.log(3 * a)
v = torch.log(b)
return z + w + v
"""


def told(body: str, folder: Path) -> list[Finding]:
    path = folder / "model.py"
    path.write_text(model_file(body))
    found = analyze(capture(load_target(TargetSpec(str(path)))), Question(gpus=gpus_named(["h100"]))).findings
    return [each for each in found if each.rule in ("G204", "G205")]


def test_what_breaks_where_one_result_is_zero_is_one_finding_at_the_gravest_line(tmp_path: Path) -> None:
    first, other = told(BODY, tmp_path)
    assert (first.rule, first.severity) == ("G204", Severity.WARNING)
    assert first.evidence["also"] == [{"rule": "G205", "line": first.location.line - 1}]
    assert first.message.endswith(f"the same result of softplus breaks line {first.location.line - 1} (G205)")
    assert "also" not in other.evidence
    assert other.location.line == first.location.line + 1


@pytest.mark.parametrize("line", ["z = x / a.detach().clamp(min=1e-3)", "z = x / (1 + a)"])
def test_what_does_not_break_is_not_named(line: str, tmp_path: Path) -> None:
    first, _ = told(BODY.replace("z = x / a", line), tmp_path)
    assert "also" not in first.evidence
