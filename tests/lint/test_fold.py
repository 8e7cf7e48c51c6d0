"""Constants and dtypes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from amptune.lint.fold import UNKNOWN
from tests.lint.helpers import marked, source_of


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("-1e9", -1e9),
        ("2 ** 15 - 1", 32767),
        ("1 << 4", 16),
        ("10 // 3 + 7 % 4", 6),
        ("'a'", "a"),
        ("(1, 2)", (1, 2)),
        ("not True", False),
        ("False and unknown", False),
        ("unknown and False", False),
        ("unknown or True", True),
        ("unknown or False", UNKNOWN),
        ("1 < 2", True),
        ("None is None", True),
        ("float('-inf')", -math.inf),
        ("-math.inf", -math.inf),
        ("int(3.7)", 3),
        ("torch.finfo(torch.float16).max", 65504.0),
        ("torch.finfo(torch.bfloat16).eps", 2.0**-7),
        ("torch.finfo(x.dtype).min", UNKNOWN),
        ("EPS", 1e-8),
        ("TWICE", UNKNOWN),
        ("SAME", 5),
        ("1 if c else 1", 1),
        ("1 if c else True", UNKNOWN),
        ("1 / 0", UNKNOWN),
        ("10 ** 10 ** 10", UNKNOWN),
        ("'a' * 10 ** 9", UNKNOWN),
        ("f'{x}'", UNKNOWN),
        ("-None", UNKNOWN),
        ("unknown()", UNKNOWN),
    ],
)
def test_constant(expression: str, value: Any) -> None:
    names = "import math, torch\nEPS = 1e-8\nTWICE = 1\nTWICE = 2\nSAME = 5\nSAME = 5\n"
    source = source_of(f"{names}HERE({expression})")
    found = source.constant(marked(source))
    assert found == value
    assert type(found) is type(value)


def test_no_expression_is_unknown() -> None:
    source = source_of("pass")
    assert source.constant(None) is UNKNOWN
    assert source.number(None) is None
    assert source.dtypes(None) == frozenset()


@pytest.mark.parametrize(("text", "value"), [("True", None), ("3", 3.0), ("'3'", None), ("10 ** 400", math.inf)])
def test_number(text: str, value: float | None) -> None:
    source = source_of(f"HERE({text})")
    assert source.number(marked(source)) == value


@pytest.mark.parametrize(
    ("expression", "dtypes"),
    [
        ("torch.float16", {"float16"}),
        ("torch.half", {"float16"}),
        ("half_type", {"float16"}),
        ("torch.bfloat16 if ok else torch.float16", {"bfloat16", "float16"}),
        ("{'a': torch.half, 'b': torch.bfloat16}[name]", {"float16", "bfloat16"}),
        ("getattr(torch, 'bfloat16')", {"bfloat16"}),
        ("getattr(torch, name)", {"?"}),
        ("x.dtype", {"?"}),
        ("'bf16'", {"bfloat16"}),
        ("'auto'", {"?"}),
        ("None", set()),
        ("chosen", {"float16", "?"}),
    ],
)
def test_dtypes(expression: str, dtypes: set[str]) -> None:
    source = source_of(
        f"import torch\nfrom torch import half as half_type\nchosen = torch.half\nchosen = x.dtype\nHERE({expression})"
    )
    assert source.dtypes(marked(source)) == dtypes
