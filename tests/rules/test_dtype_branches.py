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
    "two ways": "if h.dtype is torch.float16:\n    return h - 6e4\nreturn h - 1e9",
    "a function": "return h.masked_fill(x > 0, far_from(h))",
    "an early return in a function": "return h.masked_fill(x > 0, far_by_width(h))",
    "a table": "return h.masked_fill(x > 0, FAR[h.dtype])",
    "a table with a default": "far = FAR.get(h.dtype, -1e9)\nreturn h.masked_fill(x > 0, far)",
    "float32 by name": "return h.masked_fill(x > 0, -1e9 if h.dtype == torch.float32 else -6e4)",
    "a limit": "return torch.where(x > 0, max(-1e9, torch.finfo(h.dtype).min), h)",
    "autocast": "return h.masked_fill(x > 0, -6e4 if torch.is_autocast_enabled() else -1e9)",
    "a function by name": "far = far_from(h)\nreturn torch.where(x > 0, h, far)",
    "the op itself": "if h.dtype == torch.float16:\n    h = h.masked_fill(x > 0, -6e4)\nelse:\n"
    "    h = h.masked_fill(x > 0, -1e9)\nreturn h",
}
OTHERS = {
    "refused": "if x.dtype != torch.float32:\n    raise TypeError(x.dtype)\nreturn h.masked_fill(x > 0, -1e9)",
    "returned as it is": "if x.dtype == torch.float16:\n    return h\nreturn h.masked_fill(x > 0, -1e9)",
    "a function of tensors": "return scaled(h).masked_fill(x > 0, -1e9)",
    "bfloat16 alone": "return h.masked_fill(x > 0, -3e38 if h.dtype == torch.bfloat16 else -1e9)",
    "the same for both": "return h.masked_fill(x > 0, FAR[x.dim()])",
    "another function": "return h.masked_fill(x > 0, far_from_all(h))",
    "no question": "return h.masked_fill(x > 0, -1e9)",
    "another name": "near = 0.5 if h.dtype == torch.float16 else 0.1\nh = h * near\nreturn h.masked_fill(x > 0, -1e9)",
    "another question": "far = -6e4 if self.training is None else -1e9\nreturn h.masked_fill(x > 0, far)",
    "asked later": "h = h.masked_fill(x > 0, -1e9)\nif h.dtype == torch.float16:\n    h = h * 2\nreturn h",
}


HELPERS = """

FAR = {torch.float16: -6e4, torch.float32: -1e9, 2: -1e9}


def far_from(t):
    return -6e4 if t.dtype == torch.float16 else -1e9


def far_from_all(t):
    near = -6e4 if t.dtype == torch.float16 else -1e4
    return -1e9


def far_by_width(t):
    if t.element_size() == 2:
        return -6e4
    return -1e9


def scaled(t):
    if t.dtype == torch.float16:
        t = t / 2
    return t
"""


def source(body: str) -> str:
    return model_file(f"h = self.fc(x)\n{body}") + HELPERS


def severities(body: str, folder: Path) -> list[Severity]:
    return [each.severity for each in found("G201", source(body), folder)]


@pytest.mark.parametrize("body", ASKED.values(), ids=ASKED)
def test_a_number_that_a_dtype_decides_about_is_information(body: str, tmp_path: Path) -> None:
    assert severities(body, tmp_path) == [Severity.INFO]
    for finding in found("G201", source(body), tmp_path):
        assert "which asks for the precision" in finding.message
        assert "stops" not in finding.evidence


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS)
def test_other_numbers_are_errors(body: str, tmp_path: Path) -> None:
    assert severities(body, tmp_path) == [Severity.ERROR]


def test_a_file_that_has_changed_is_read_anew(tmp_path: Path) -> None:
    assert severities(ASKED["on the spot"], tmp_path) == [Severity.INFO]
    assert severities(OTHERS["no question"], tmp_path) == [Severity.ERROR]
    assert severities(ASKED["on the spot"], tmp_path) == [Severity.INFO]
