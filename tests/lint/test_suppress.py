"""Suppression comments."""

from __future__ import annotations

import pytest

from amptune.lint.check import check_text
from amptune.testing import source_rules

RULES = [rule() for rule in source_rules(["amptune_rules"]) if rule.code in ("AMP001", "AMP401")]
CALL = "torch.cuda.amp.GradScaler()"


def found(text: str, path: str = "a.py") -> list[tuple[str, int]]:
    return [(finding.rule, finding.location.line) for finding in check_text(path, text, RULES)]


@pytest.mark.parametrize(
    "text",
    [
        f"import torch\ns = {CALL}  # amptune: ignore[AMP401]\n",
        f"import torch\ns = {CALL}  # amptune: ignore[AMP401] because of torch 2.2\n",
        f"import torch\ns = {CALL}  #amptune:ignore[AMP4]\n",
        f"import torch\ns = {CALL}  # noqa  # amptune: ignore[AMP101, AMP401]\n",
        f"import torch\ns = {CALL}  # amptune: ignore\n",
        f"import torch\n# amptune: ignore[AMP401]\n\n# another comment\ns = {CALL}\n",
        f"import torch\ns = {CALL}\n# amptune: ignore-file[AMP401] generated\n",
        f"# amptune: ignore-file\nimport torch\ns = {CALL}\n",
        "import torch\nwith torch.cuda.amp.autocast(  # amptune: ignore[AMP401]\n    enabled=x,\n):\n    pass\n",
    ],
)
def test_silenced(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"import torch\ns = {CALL}  # amptune: ignore[AMP101]\n", [("AMP401", 2)]),
        (f"import torch\ns = '# amptune: ignore[AMP401]', {CALL}\n", [("AMP401", 2)]),
        (f"import torch\n# amptune: ignore[AMP401]\nx = 1\ns = {CALL}\n", [("AMP001", 2), ("AMP401", 4)]),
        ("import torch\nx = 1  # amptune: ignore[AMP401]\n", [("AMP001", 2)]),
        ("x = 1  # amptune: ignore\n", [("AMP001", 1)]),
        ("# amptune: ignore-file[AMP401]\nx = 1\n", [("AMP001", 1)]),
        ("x = 1  # amptune: ignore[NOPE]\n", [("AMP001", 1)]),
        (f"import torch\ns = {CALL}  # amptune: ignore[AMP401, AMP499]\n", [("AMP001", 2)]),
        ("x = 1  # amptune: ignore[AMP101, AMP3]\n", []),
        ("x = 1  # amptune: ignore[XYZ999] of another pack\n", []),
        ("x = 1  # amptune: ignore[AMP101] not switched on here\n", []),
        (f"import torch\ns = {CALL}; '''\n# amptune: ignore[AMP401]\n'''\n", [("AMP401", 2)]),
    ],
)
def test_not_silenced(text: str, expected: list[tuple[str, int]]) -> None:
    assert found(text) == expected


def test_an_unknown_code_is_named_with_the_nearest() -> None:
    (finding,) = check_text("a.py", "x = 1  # amptune: ignore[amp401]\n", RULES)
    assert finding.message == "no rule is called amp401: did you mean AMP401?"
