"""Numbers that the code chooses by dtype: FP16 may take another one than the capture in FP32 shows (G201)."""

from __future__ import annotations

from pathlib import Path

import pytest
from amptune_rules.graph._examples import model_file

from amptune.core.finding import Severity
from tests.rules.test_written_otherwise import found

ASKED = {
    "a name": "far = -6e4 if h.dtype == torch.float16 else -1e9\nreturn h.masked_fill(x > 0, far)",
    "on the spot": "return h.masked_fill(x > 0, -6e4 if h.dtype == torch.half else -1e9)",
    "a branch": "if h.dtype in (torch.float16, torch.bfloat16):\n    far = -6e4\nelse:\n    far = -1e9\n"
    "return torch.where(x > 0, h, far)",
    "two ways": "if h.dtype is torch.float16:\n    return h - 6e4\nreturn h + 0",
    "the op itself": "if h.dtype == torch.float16:\n    h = h.masked_fill(x > 0, -6e4)\nelse:\n"
    "    h = h.masked_fill(x > 0, -1e9)\nreturn h",
}
OTHERS = {
    "no question": "return h.masked_fill(x > 0, -1e9)",
    "another name": "near = 0.5 if h.dtype == torch.float16 else 0.1\nh = h * near\nreturn h.masked_fill(x > 0, -1e9)",
    "another question": "far = -6e4 if self.training is None else -1e9\nreturn h.masked_fill(x > 0, far)",
    "asked later": "h = h.masked_fill(x > 0, -1e9)\nif h.dtype == torch.float16:\n    h = h * 2\nreturn h",
}


def severities(body: str, folder: Path) -> list[Severity]:
    return [each.severity for each in found("G201", model_file(f"h = self.fc(x)\n{body}"), folder)]


@pytest.mark.parametrize("body", ASKED.values(), ids=ASKED)
def test_a_number_that_a_dtype_decides_about_is_information(body: str, tmp_path: Path) -> None:
    assert set(severities(body, tmp_path)) <= {Severity.INFO}
    for finding in found("G201", model_file(f"h = self.fc(x)\n{body}"), tmp_path):
        assert "which asks for float16" in finding.message
        assert "stops" not in finding.evidence


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS)
def test_other_numbers_are_errors(body: str, tmp_path: Path) -> None:
    assert severities(body, tmp_path) == [Severity.ERROR]
