"""Terms that belong together, in models as they are written: what bounds them is no interval of each alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from amptune.core.finding import Severity
from tests.analyze.test_ranges import NET, judged, loaded

EXPONENTIALS = {
    "perplexity of shares": "p = self.fc(x).softmax(-1)\n        return torch.exp(-(p * torch.log(p + 1e-6)).sum(-1))",
    "perplexity of mean shares":
        "p = self.fc(x).softmax(-1).mean(0)\n        return torch.exp(-(p * torch.log(p + 1e-6)).sum())",
    "perplexity of codes that one_hot makes":
        "p = F.one_hot(self.fc(x).argmax(-1), 4096).float().mean(0)\n"
        "        return self.fc(x).sum() + torch.exp(-(p * torch.log(p + 1e-10)).sum())",
    "perplexity of codes of several heads":
        "p = F.one_hot(self.fc(x).view(-1, 4, 1024).argmax(-1), 1024).float().view(-1, 1024).mean(0)\n"
        "        return self.fc(x).sum() + torch.exp(-(p * torch.log(p + 1e-10)).sum())",
    "perplexity of codes that are scattered":
        "h = self.fc(x)\n        p = torch.zeros(h.shape, device=h.device)\n"
        "        p.scatter_(1, h.argmin(1).unsqueeze(1), 1)\n        p = p.mean(0)\n"
        "        return h.sum() + torch.exp(-torch.sum(p * torch.log(p + 1e-10)))",
    "perplexity of shares of a sum":
        "p = self.fc(x).abs().sum(0) + 1\n        p = p / p.sum()\n"
        "        return torch.exp(-(p * torch.log(p + 1e-10)).sum())",
    "what is left of a decay":
        "c = torch.cumsum(-F.softplus(self.fc(x)), -1)\n        return torch.exp(c[:, -1:] - c)",
    "what is left of a decay, its sum written twice":
        "a = -F.softplus(self.fc(x))\n        return torch.exp(a.cumsum(-1)[:, -1:] - a.cumsum(-1))",
    "what is left of a decay, by chunks":
        "c = torch.cumsum(-F.softplus(self.fc(x).view(2, -1, 4096)), -1)[0]\n"
        "        return torch.exp(c[:, -1:] - c)",
    "half a square written from the left":
        "z = self.fc(x)\n        return torch.exp(-0.5 * z * z)",
    "a square times its own negative":
        "z = self.fc(x)\n        return torch.exp(z * -(z / 2))",
    "decays from each step to each later one":
        "c = torch.cumsum(-F.softplus(self.fc(x)[:, :32]), -1)\n"
        "        causal = torch.ones(32, 32, dtype=torch.bool, device=x.device).tril()\n"
        "        d = (c[..., :, None] - c[..., None, :]).masked_fill(~causal, float('-inf'))\n"
        "        return torch.exp(d)",
    "decays from each step to each later one, their sum written twice":
        "a = -F.softplus(self.fc(x)[:, :32])\n"
        "        causal = torch.ones(32, 32, dtype=torch.bool, device=x.device).tril()\n"
        "        d = a.cumsum(-1)[..., :, None] - a.cumsum(-1)[..., None, :]\n"
        "        return torch.exp(d.masked_fill(~causal, float('-inf')))",
    "decays to each step from each earlier one":
        "c = torch.cumsum(F.softplus(self.fc(x)[:, :32]), -1)\n"
        "        causal = torch.ones(32, 32, device=x.device).tril() > 0\n"
        "        d = c.unsqueeze(-2) - c.unsqueeze(-1)\n        return torch.exp(torch.where(causal, d, -1e9))",
    "distances of unit vectors":
        "z = F.normalize(self.fc(x), dim=-1)\n        return torch.exp(8 * torch.pdist(z))",
}  # fmt: skip
WIDE = NET.replace("nn.Linear(16, 16)", "nn.Linear(16, 4096)").replace("image", "x")


@pytest.mark.parametrize("body", EXPONENTIALS.values(), ids=EXPONENTIALS)
def test_what_belongs_together_bounds_an_exponent(body: str, tmp_path: Path) -> None:
    assert "G203" not in {found.rule for found in judged(*loaded(tmp_path, WIDE.format(body=body))).findings}


def test_a_sum_over_part_of_the_shares_is_no_entropy(tmp_path: Path) -> None:
    body = "p = self.fc(x).softmax(-1)\n        return torch.exp(-4096 * (p * torch.log(p + 1e-6)).sum(0))"
    found = judged(*loaded(tmp_path, WIDE.format(body=body))).findings
    assert any(each.rule == "G203" and "the ops bound the input of exp by" in each.message for each in found)


SHARES_OF_NOTHING = {
    "codes that add up":
        "p = torch.zeros(x.shape[0], 4096, device=x.device)\n"
        "        p.scatter_(1, self.fc(x).topk(9)[1], 1)\n        p = p.mean(0)\n"
        "        return self.fc(x).sum() + torch.exp(-4096 * (p * torch.log(p + 1e-10)).sum())",
    "rows of several codes":
        "p = F.one_hot(self.fc(x).view(-1, 16).argmax(-1), 16).float()\n        p = p.view(-1, 4096).mean(0)\n"
        "        return self.fc(x).sum() + torch.exp(-(p * torch.log(p + 1e-10)).sum())",
    "half a product":
        "z = self.fc(x)\n        return torch.exp(-0.5 * z * z.flip(-1))",
    "a matrix times its own transpose, number by number":
        "z = self.fc(x)[:, :8]\n        return torch.exp((-0.5 * z).T * z)",
    "decays to each earlier step":
        "c = torch.cumsum(-F.softplus(self.fc(x)[:, :32]), -1)\n"
        "        later = torch.ones(32, 32, dtype=torch.bool, device=x.device).triu()\n"
        "        d = c[..., :, None] - c[..., None, :]\n        return torch.exp(d.masked_fill(~later, float('-inf')))",
    "decays whose mask comes after the exponential":
        "c = torch.cumsum(-F.softplus(self.fc(x)[:, :32]), -1)\n"
        "        causal = torch.ones(32, 32, dtype=torch.bool, device=x.device).tril()\n"
        "        d = c[..., :, None] - c[..., None, :]\n        return torch.exp(d).masked_fill(~causal, 0)",
    "decays of another sequence":
        "c = torch.cumsum(-F.softplus(self.fc(x)[:, :32]), -1)\n"
        "        causal = torch.ones(32, 32, dtype=torch.bool, device=x.device).tril()\n"
        "        d = c[..., :, None] - c.flip(-1)[..., None, :]\n"
        "        return torch.exp(d.masked_fill(~causal, float('-inf')))",
    "a growth from its start":
        "c = torch.cumsum(-F.softplus(self.fc(x)), -1)\n        return torch.exp(c[:, :1] - c)",
}  # fmt: skip


@pytest.mark.parametrize("body", SHARES_OF_NOTHING.values(), ids=SHARES_OF_NOTHING)
def test_what_does_not_add_up_bounds_no_exponent(body: str, tmp_path: Path) -> None:
    assert "G203" in {found.rule for found in judged(*loaded(tmp_path, WIDE.format(body=body))).findings}


MASKED = """\
z = F.normalize(self.fc(x), dim=-1)
        e = torch.exp(z @ z.T / 0.1)
        {kept}
        return torch.log(e.diagonal() / kept.sum(1)) + torch.log(kept.sum(1))"""
DIAGONALS = {
    "times one minus eye": "kept = e * (1 - torch.eye(8, device=x.device))",
    "times not eye": "kept = e * (~torch.eye(8, dtype=torch.bool, device=x.device)).float()",
    "ones like less eye": "kept = e * (torch.ones_like(e) - torch.eye(8, device=x.device))",
    "filled": "kept = e.masked_fill(torch.eye(8, device=x.device).bool(), 0)",
    "filled in place": "kept = e.clone()\n        kept.fill_diagonal_(0)",
}


@pytest.mark.parametrize("kept", DIAGONALS.values(), ids=DIAGONALS)
def test_a_sum_without_its_diagonal_is_not_zero(kept: str, tmp_path: Path) -> None:
    found = judged(*loaded(tmp_path, WIDE.format(body=MASKED.format(kept=kept)))).findings
    assert not {"G204", "G205"}.intersection(each.rule for each in found)


def test_a_sum_of_which_a_mask_leaves_nothing_may_be_zero(tmp_path: Path) -> None:
    kept = "kept = e * torch.ones(8, 8, device=x.device).triu(1)"  # the last row is empty
    found = judged(*loaded(tmp_path, WIDE.format(body=MASKED.format(kept=kept)))).findings
    assert {"G204", "G205"} <= {each.rule for each in found}


def test_a_squareplus_is_not_negative(tmp_path: Path) -> None:
    body = "h = self.fc(x).float()\n        return torch.lgamma(1 + (h + torch.sqrt(h.square() + 4)) / 2)"
    assert not judged(*loaded(tmp_path, NET.replace("image", "x").format(body=body))).findings


def test_the_largest_sum_of_shares_is_not_zero(tmp_path: Path) -> None:
    body = "p = self.fc(x).softmax(-1)\n        return p / torch.max(torch.sum(p, dim=-2))"
    assert "G205" not in {each.rule for each in judged(*loaded(tmp_path, WIDE.format(body=body))).findings}
    whole = body.replace("dim=-2", "dim=-1").replace("softmax(-1)", "relu()")
    assert "G205" in {each.rule for each in judged(*loaded(tmp_path, WIDE.format(body=whole))).findings}


def test_a_sum_of_a_mask_is_not_said_to_have_both_signs(tmp_path: Path) -> None:
    text, batch = NET.format(body="return self.fc(image).sum() / image.sum()"), "torch.eye(16)[:8], None"
    found = judged(*loaded(tmp_path, text, batch)).findings
    (message,) = (each.message for each in found if each.rule == "G205")
    assert "division by a sum, which is zero where all its terms are" in message


@pytest.mark.parametrize(("read", "reported"), [("target", False), ("source", True)])
def test_a_sum_by_segment_is_not_zero_where_it_is_read_back(read: str, reported: bool, tmp_path: Path) -> None:
    body = (
        "h = self.fc(image)\n        source, target = h[:, :4].argmax(1), h[:, 4:8].argmax(1)\n"
        "        e = torch.exp(torch.tanh(h))\n        total = torch.zeros(4, 16).index_add(0, target, e)\n"
        f"        return e / total[{read}]"
    )
    found = judged(*loaded(tmp_path, NET.format(body=body))).findings
    assert any(each.rule == "G205" for each in found) is reported


def test_an_exponential_as_denominator_is_one_finding(tmp_path: Path) -> None:
    found = judged(*loaded(tmp_path, NET.format(body="return image / torch.exp(self.fc(image))"))).findings
    assert [each.rule for each in found] == ["G203"]


def test_a_bounded_difference_may_be_zero(tmp_path: Path) -> None:
    body = "h = torch.tanh(self.fc(x).float())\n        return x / (h{} - 0.5)"
    (found,) = [
        each for each in judged(*loaded(tmp_path, WIDE.format(body=body.format("[:, :16]")))).findings
        if each.rule == "G205"
    ]  # fmt: skip
    assert "division by a difference, which can be zero" in found.message
    apart = body.format("[:, :16] + 2")
    assert "G205" not in {each.rule for each in judged(*loaded(tmp_path, WIDE.format(body=apart))).findings}


COSINE = """\
a, b = self.fc(x), self.fc(x.flip(0))
        return torch.exp(10 * ((a * b).sum({axis}) / {norms}))"""
NORMS = {
    "a product": "(a.norm(dim=-1) * b.norm(dim=-1))",
    "with an eps": "(a.norm(dim=-1) * b.norm(dim=-1) + 1e-8)",
    "with a limit of the product": "(b.norm(dim=-1) * a.norm(dim=-1)).clamp(min=1e-8)",
    "with a limit of each": "(a.norm(p=2, dim=-1).clamp(min=1e-6) * torch.linalg.norm(b, dim=-1).clamp(min=1e-6))",
}


@pytest.mark.parametrize("norms", NORMS.values(), ids=NORMS)
def test_a_cosine_by_hand_lies_within_one(norms: str, tmp_path: Path) -> None:
    body = COSINE.format(axis=-1, norms=norms)
    assert "G203" not in {each.rule for each in judged(*loaded(tmp_path, WIDE.format(body=body))).findings}


NO_COSINES = {
    "another vector": (-1, "(a.norm(dim=-1) * a.norm(dim=-1))"),
    "another axis": (0, "(a.T.norm(dim=-1) * b.T.norm(dim=-1)).sum()"),
    "the largest number": (-1, "(a.norm(float('inf'), dim=-1) * b.norm(float('inf'), dim=-1))"),
    "the largest number by name": (-1, "(a.norm(p=float('inf'), dim=-1) * b.norm(p=float('inf'), dim=-1))"),
    "the largest number in linalg":
        (-1, "(torch.linalg.norm(a, float('inf'), dim=-1) * torch.linalg.vector_norm(b, float('inf'), dim=-1))"),
}  # fmt: skip


@pytest.mark.parametrize(("axis", "norms"), NO_COSINES.values(), ids=NO_COSINES)
def test_a_dot_product_divided_by_something_else_is_no_cosine(axis: int, norms: str, tmp_path: Path) -> None:
    body = COSINE.format(axis=axis, norms=norms)
    assert "G203" in {each.rule for each in judged(*loaded(tmp_path, WIDE.format(body=body))).findings}


def rules_of(tmp_path: Path, body: str) -> set[str]:
    return {each.rule for each in judged(*loaded(tmp_path, WIDE.format(body=body))).findings}


def test_a_norm_is_at_least_the_size_of_its_numbers(tmp_path: Path) -> None:
    body = "h = self.fc(x).float().square().clamp(min={}).sqrt()\n        return h / torch.norm(h, p='fro')"
    assert "G205" not in rules_of(tmp_path, body.format("1e-7"))
    assert "G205" in rules_of(tmp_path, body.format("0"))


def test_products_of_vectors_with_a_largest_number_of_one_are_not_bounded(tmp_path: Path) -> None:
    body = "z = self.fc(x)\n        z = z / z.norm({}dim=-1, keepdim=True)\n        return torch.exp(z @ z.T * 10)"
    assert "G203" not in rules_of(tmp_path, body.format(""))
    assert "G203" in rules_of(tmp_path, body.format("p=float('inf'), "))


@pytest.mark.parametrize(("eps", "protects"), [("mask * 1e-16", True), ("1e-8 * mask", True), ("mask * 0", False),
                                               ("(1 - mask) * 1e-16", False)])  # fmt: skip
def test_an_eps_where_a_distance_is_zero_keeps_its_root_finite(eps: str, protects: bool, tmp_path: Path) -> None:
    body = "d = self.fc(x).clamp(min=0)\n        mask = (d == 0).float()\n        return torch.sqrt(d + " + eps + ")"
    assert ("G206" not in rules_of(tmp_path, body)) is protects


BLENDS = {
    "targets and the rest": "y = F.one_hot(self.fc(x).argmax(-1), 4096).float()\n        a = y + (1 - y) * a",
    "two terms": "y = torch.sigmoid(self.fc(x))\n        a = (1 - y) * a + y * (a + 1)",
}


@pytest.mark.parametrize("mixed", BLENDS.values(), ids=BLENDS)
def test_a_mixture_lies_between_its_parts(mixed: str, tmp_path: Path) -> None:
    body = "a = F.softplus(self.fc(x)) + {}\n        " + mixed + "\n        return torch.lgamma(a)"
    assert "G213" not in {each.rule for each in judged(*loaded(tmp_path, WIDE.format(body=body.format(1)))).findings}
    assert "G213" in {each.rule for each in judged(*loaded(tmp_path, WIDE.format(body=body.format(0)))).findings}


def test_the_logarithm_of_a_loss_is_information(tmp_path: Path) -> None:
    body = "h = self.fc(x)\n        return h.square().mean() - 10 * torch.log10(F.mse_loss(h, torch.zeros_like(h)))"
    found = [each for each in judged(*loaded(tmp_path, WIDE.format(body=body))).findings if each.rule == "G204"]
    assert [each.severity for each in found] == [Severity.INFO]


SPARSEMAX = """\
z = torch.sort(self.fc(x).float(), dim=-1, descending=True)[0]
        c = z.cumsum(-1) - 1
        k = (torch.arange(1, 4097, device=x.device) * z > c).sum(-1, keepdim=True)
        return c.{picked} / k.to(z.dtype)"""


@pytest.mark.parametrize(("picked", "counts"), [("gather(-1, k - 1)", True), ("gather(-1, k.long() - 1)", True),
                                                ("gather(-1, k)", False), ("sum(-1, keepdim=True)", False),
                                                ("gather(-1, k - 2 + 1)", False),
                                                ("gather(-1, k[:4] - 1)[:1]", False)])  # fmt: skip
def test_a_count_whose_predecessor_is_an_index_is_not_zero(picked: str, counts: bool, tmp_path: Path) -> None:
    assert ("G205" not in rules_of(tmp_path, SPARSEMAX.format(picked=picked))) is counts


RATIO = """\
h = self.fc(x).float()
        clean, noise = {clean}, {noise}
        return h.mean() + torch.log10(clean / noise)"""


@pytest.mark.parametrize(
    ("clean", "noise", "reaches_zero"),
    [("h.square().sum(-1) + 1e-8", "(h - 1).square().sum(-1) + 1e-8", False),
     ("h.square().sum(-1)", "(h - 1).square().sum(-1) + 1e-8", True),
     ("1e-8", "h.sum(-1).exp()", True),
     ("(h.abs() + 1e-4).half()", "(h.square() + 1).half()", True)],
    ids=["an eps on both sides", "no eps above", "an exponential below", "in FP16"],
)  # fmt: skip
def test_the_logarithm_of_a_ratio_needs_its_eps_above(
    clean: str, noise: str, reaches_zero: bool, tmp_path: Path
) -> None:
    assert ("G204" in rules_of(tmp_path, RATIO.format(clean=clean, noise=noise))) is reaches_zero


def test_a_fill_is_called_as_the_code_calls_it(tmp_path: Path) -> None:
    body = "s = self.fc(x) @ self.fc(x).T\n        s.fill_diagonal_(-1e9)\n        return s.softmax(-1)"
    found = [each for each in judged(*loaded(tmp_path, WIDE.format(body=body))).findings if each.rule == "G201"]
    assert found
    assert "this fill_diagonal_ raises" in found[0].message


def test_a_result_without_a_gradient_does_not_stop_the_step(tmp_path: Path) -> None:
    body = "h = self.fc(x)\n        sign, size = torch.slogdet(h @ h.T + torch.eye(8))\n        return h + size"
    found = judged(*loaded(tmp_path, NET.replace("image", "x").format(body=body)), observe=True)
    assert found.ranges["sites"]


def test_a_logarithm_that_fails_in_some_formats_names_their_recipes(tmp_path: Path) -> None:
    body = "return torch.log(1 - torch.sigmoid(self.fc(x)).clamp(1e-4, 1 - 1e-4))"
    (found,) = [each for each in judged(*loaded(tmp_path, WIDE.format(body=body))).findings if each.rule == "G204"]
    assert "whose values start at 0 under autocast-bf16 and autocast-fp16:" in found.message


def test_a_variance_with_an_eps_is_told_once(tmp_path: Path) -> None:
    body = (
        "h = self.fc(x)\n        m = h.mean(-1, keepdim=True)\n"
        "        return ((h ** 2).mean(-1, keepdim=True) - m ** 2 + 1e-5).sum()"
    )
    found = [each for each in judged(*loaded(tmp_path, WIDE.format(body=body))).findings if each.rule == "G218"]
    assert [each.message.partition(" cancels")[0] for each in found] == ["E[x^2] - E[x]^2"]


def test_counts_are_not_said_to_round_to_zero(tmp_path: Path) -> None:
    counts = "n = self.fc(x).argmax(-1) + 1\n        return torch.lgamma({}) + self.fc(x).mean(-1)"
    told = {}
    for read in ("n.half()", "2 * n.half() + 1", "(n.half() / 3)"):
        found = judged(*loaded(tmp_path, NET.replace("image", "x").format(body=counts.format(read)))).findings
        told[read] = any("can round to the end" in each.message for each in found if each.rule == "G213")
    assert told == {"n.half()": False, "2 * n.half() + 1": False, "(n.half() / 3)": True}


ITSELF = "h = self.fc(x)\n        d = (h.unsqueeze({0}) - h.unsqueeze({1})).square().sum(-1)\n        return "


@pytest.mark.parametrize(
    ("body", "is_told"),
    [
        (ITSELF.format(1, 0) + "torch.log(torch.exp(-d / 2).mean(1)).mean()", False),
        (ITSELF.format(1, 0) + "torch.log((-0.5 * d).exp().sum(0)).mean()", False),
        (ITSELF.format(1, 0).replace("sum(-1)", "sum(-1, keepdim=True)") + "(-d).exp().sum(0).log().mean()", False),
        (ITSELF.format(1, 0) + "torch.log(torch.exp(-d[:, 1:] / 2).mean(1)).mean()", True),
        (ITSELF.format(1, 0).replace("- h.unsqueeze(0)", "- x[:, :1].unsqueeze(0)")
         + "torch.log(torch.exp(-d / 2).mean(1)).mean()", True),
        (ITSELF.format(1, 0).replace("sum(-1)", "sum(1)") + "torch.log(torch.exp(-d).mean(1)).mean()", True),
    ],
    ids=["mean", "sum", "keepdim", "without themselves", "of another tensor", "over the pairs"],
)  # fmt: skip
def test_a_kernel_of_all_pairs_has_ones_where_a_row_meets_itself(body: str, is_told: bool, tmp_path: Path) -> None:
    """So its sums along the pairs are at least 1, however far the rows are apart: the density at each of them."""
    text = NET.replace("image", "x").format(body=body)
    assert ("G204" in {found.rule for found in judged(*loaded(tmp_path, text)).findings}) is is_told
