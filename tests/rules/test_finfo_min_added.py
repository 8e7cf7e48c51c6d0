"""AMP310: how sure the rule is of a sum of two masks."""

from __future__ import annotations

import pytest
import torch

from amptune.core.finding import Severity
from amptune.lint.check import check_text
from amptune.testing import source_rules

RULES = [rule() for rule in source_rules(["amptune_rules"]) if rule.code == "AMP310"]
SUM = """\
import torch

def make_causal_mask(n, dtype):
    mask = torch.full((n, n), torch.finfo(dtype).min)
    later = torch.arange(n)
    mask.masked_fill_(later < (later + 1).view(n, 1), 0)
    return mask

def both(mask, queries, n, dtype):
    low = torch.finfo(dtype).min
    padding = (1.0 - mask) * low
    other = {other}
    return other + padding
"""


@pytest.mark.parametrize(
    ("other", "severity"),
    [
        ("(1.0 - queries) * low", Severity.WARNING),
        ("torch.full((n, n), torch.finfo(dtype).min).triu(1)", Severity.INFO),
        ("torch.triu(torch.full((n, n), torch.finfo(dtype).min), diagonal=1)[None]", Severity.INFO),
        ("torch.full((n, n), torch.finfo(dtype).min).triu()", Severity.WARNING),
        ("torch.full((n, n), torch.finfo(dtype).min).triu(0).expand(4, n, n)", Severity.WARNING),
        ("make_causal_mask(n, dtype)[None].expand(4, n, n)", Severity.INFO),
        ("None if n == 1 else torch.triu(torch.full((n, n), torch.finfo(dtype).min), 1)", Severity.INFO),
    ],
)
def test_a_causal_mask_keeps_its_diagonal(other: str, severity: Severity) -> None:
    text = SUM.format(other=other)
    assert [found.severity for found in check_text("a.py", text, RULES)] == [severity]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_softmax_of_causal_and_padding_masks_is_never_nan(dtype: torch.dtype) -> None:
    """What the severity stands on: -inf is there, a row of it alone is not."""
    low = torch.finfo(dtype).min
    causal = torch.full((6, 6), low, dtype=dtype).triu(1)
    for real in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0] * 6):
        padding = (1 - torch.tensor(real, dtype=dtype)) * low
        assert (causal + padding).isinf().any()
        assert not (causal + padding).softmax(-1).isnan().any()
    whole = torch.full((6, 1), low, dtype=dtype)
    assert (whole + (1 - torch.zeros(6, dtype=dtype)) * low).softmax(-1).isnan().all()
