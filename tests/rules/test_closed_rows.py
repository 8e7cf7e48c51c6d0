"""Rows of scores that a mask closes as a whole: by adding it, by torch.where, and inside nn.MultiheadAttention."""

from __future__ import annotations

from pathlib import Path

import pytest
from amptune_rules.graph._examples import model_file

from tests.rules.test_written_otherwise import found

SCORES = "q = self.fc(x).view(4, 8, 64).float()\nscores = q @ q.transpose(1, 2) / 8"
ADDED = "mask = torch.zeros(4, 1, 8).masked_fill(hidden[:, None], float('-inf'))"
SPELLINGS = {
    "added": f"{SCORES}\n{ADDED}\nreturn (scores + mask).softmax(-1) @ q",
    "by where": f"{SCORES}\nreturn torch.softmax(torch.where(hidden[:, None], float('-inf'), scores), 2) @ q",
    "in place": f"{SCORES}\nscores.masked_fill_(hidden[:, None], float('-inf'))\nreturn F.softmax(scores, dim=-1) @ q",
    "scores in heads": f"{SCORES}\nby_head = scores.masked_fill(hidden[:, None], float('-inf')).view(4, 8, 1, 8)\n"
                       "return F.softmax(by_head.to(torch.float64), dim=3).sum()",
    "heads of the library": "y = self.fc(x).view(4, 8, 64)\n"
                            "return self.heads(y, y, y, key_padding_mask=hidden)[0]",
    "two masks": f"{SCORES}\nfar = torch.ones(8, 8, dtype=torch.bool).triu(1)\n"
                 "scores = scores.masked_fill(far, float('-inf')).masked_fill(hidden[:, None], float('-inf'))\n"
                 "return scores.softmax(-1) @ q",
}  # fmt: skip
FUSED = {
    "fused": "q = self.fc(x).view(4, 1, 8, 64)\n"
             "return F.scaled_dot_product_attention(q, q, q, attn_mask=~hidden[:, None, None])",
    "heads of the library without weights": "y = self.fc(x).view(4, 8, 64)\n"
    "return self.heads(y, y, y, key_padding_mask=hidden, need_weights=False)[0]",
    "opened again": f"{SCORES}\nscores.masked_fill_(hidden[:, None], float('-inf'))\nscores[:, :, 0] = 0.0\n"
                    "return F.softmax(scores, dim=-1) @ q",
    "over another axis": f"{SCORES}\nreturn scores.masked_fill(hidden[:, None], float('-inf')).softmax(1) @ q",
}  # fmt: skip
HIDDEN = "(torch.randn(32, 64), torch.arange(32).view(4, 8) >= torch.tensor([{lengths}])[:, None])"


def count(body: str, lengths: str, folder: Path) -> int:
    init = "self.fc = nn.Linear(64, 64)\nself.heads = nn.MultiheadAttention(64, 4, batch_first=True)"
    batch = HIDDEN.format(lengths=lengths)
    return len(found("G205", model_file(body, init=init, takes="x, hidden", batch=batch), folder))


@pytest.mark.parametrize("body", SPELLINGS.values(), ids=SPELLINGS)
def test_a_row_that_a_mask_closes_is_told(body: str, tmp_path: Path) -> None:
    assert count(body, "8, 9, 20, 24", tmp_path) == 1


@pytest.mark.parametrize("body", SPELLINGS.values(), ids=SPELLINGS)
def test_rows_that_a_mask_leaves_open_are_not_told(body: str, tmp_path: Path) -> None:
    assert count(body, "8, 9, 20, 28", tmp_path) == 0


@pytest.mark.parametrize("body", FUSED.values(), ids=FUSED)
def test_a_softmax_that_is_not_of_a_closed_row(body: str, tmp_path: Path) -> None:
    assert count(body, "8, 9, 16, 24", tmp_path) == 0


@pytest.mark.parametrize(
    ("opened", "count"),
    [
        ("s = s.masked_fill(hidden.all(-1, keepdim=True), 0.0)", 0),
        ("s.masked_fill_(hidden.all(-1, keepdim=True), 0.0)", 0),
        ("s = s.masked_fill(self.fc(x) > 9, 0.0)", 0),
        ("s = s.masked_fill(~hidden & (ids == 2), 0.0)", 1),
    ],
)
def test_rows_that_are_opened_again_are_not_closed(opened: str, count: int, tmp_path: Path) -> None:
    body = f"hidden = ids == 0\ns = self.fc(x).masked_fill(hidden, float('-inf'))\n{opened}\nreturn s.softmax(-1)"
    batch = "(torch.randn(32, 64), (torch.arange(2048).view(32, 64) > 100).long())"
    assert len(found("G205", model_file(body, takes="x, ids", batch=batch), tmp_path)) == count
