"""Planted defects: is the right line named, in forward and backward, with a cure that works?"""

from __future__ import annotations

from typing import Any

import pytest

from amptune.debug.result import DebugResult, Finding, location_of
from amptune.debug.text import render

from .conftest import HEAD, Run, line_of, part

CUSTOM = """
class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        halfway = gradient * 60000
        return halfway * 60000  # BAD
"""

# name -> (body of the part, kind of the culprit, op, kinds of cures that must be among those found)
FORWARD = {
    "exp without max": ("x = x * 20\ne = torch.exp(x)  # BAD\ny = e / e.sum(-1)[:, None]", "overflow", "exp", {"fp32"}),
    "long sum": ("s = (x.abs() * 3e4).sum(-1)  # BAD\ny = x * 3e4 / s[:, None]", "overflow", "sum", {"fp32"}),
    "einsum": (
        'x = x * 400\ns = torch.einsum("bi,bj->bij", x, x)  # BAD\ny = s.mean(-1)', "overflow", "einsum",
        {"fp32", "bf16"},
    ),
    "scaled after the product": (
        "q = x * 300\ns = q @ q.t() / 32  # BAD\ny = torch.softmax(s, -1) @ x", "overflow", "matmul", {"scale", "fp32"},
    ),
    "eps in a norm": ("x = x * 0\ny = x / (x.abs().mean(-1, keepdim=True) + 1e-8)  # BAD", "underflow", "div", {"eps"}),
    "eps of normalize": ("x = F.relu(x - 50)\ny = F.normalize(x, dim=-1)  # BAD", "underflow", "normalize", {"eps"}),
    "mask that raises": (
        "m = torch.arange(32) > 20\ny = torch.softmax(x.masked_fill(m, -1e9), -1)  # BAD", "constant", "masked_fill",
        {"mask"},
    ),
    "whole row masked": (
        "m = torch.ones(32).bool()\ny = torch.softmax(torch.where(m, -1e9, x), -1)  # BAD", "constant",
        "where", {"mask"},
    ),
    "in place": ("y = x.clone()\ny.mul_(400).mul_(400)  # BAD\ny = y * 1e-6", "overflow", "mul", {"fp32"}),
}  # fmt: skip

# name -> (body, op that fails, op that lost the value, whose line is marked)
ELSEWHERE = {
    "underflowed norm": ("x = x * 1e-5\nn = (x * x).sum(-1, keepdim=True).sqrt()  # BAD\ny = x / n", "div", "mul"),
    "variance by squares": (
        "x = x / 2 + 100\nm = x.mean(1, True)\nv = (x * x).mean(1, True) - m ** 2  # BAD\ny = (x - m) * torch.rsqrt(v)",
        "rsqrt", "sub",
    ),
    "log of zero": ("x = x * 60\np = torch.sigmoid(x)  # BAD\ny = torch.log(p)", "log", "sigmoid"),
}  # fmt: skip


QUICK = {"exp without max", "scaled after the product", "eps in a norm", "mask that raises", "underflowed norm"}
"""Those that every run of the tests looks at; the search for cures takes a second or two each."""


def names(cases: dict[str, Any]) -> list[Any]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in cases]


def only(result: DebugResult) -> Finding:
    assert result.findings, result.notes
    return result.findings[0]


@pytest.mark.parametrize("name", names(FORWARD))
def test_the_line_that_overflows_or_underflows_is_named_and_cured(name: str, run: Run) -> None:
    body, kind, op, cures = FORWARD[name]
    source = part(body)
    finding = only(run(source))
    place = location_of(finding.culprit.op)
    assert place is not None
    assert (place.path, place.line) == ("model.py", line_of(source))
    assert (finding.culprit.kind, finding.culprit.op.op, finding.culprit.op.path) == (kind, op, "part")
    assert op != "matmul" or finding.remark == ""
    assert finding.step == 0
    assert cures <= {cure.kind for cure in finding.cures if cure.complete}


@pytest.mark.parametrize("name", names(ELSEWHERE))
def test_the_line_that_lost_the_value_is_named_where_another_one_fails(name: str, run: Run) -> None:
    body, fails, loses = ELSEWHERE[name]
    source = part(body)
    finding = only(run(source))
    cause = finding.culprit.cause
    assert cause is not None
    place = location_of(cause.op)
    assert place is not None
    assert (finding.culprit.op.op, cause.op.op, place.line) == (fails, loses, line_of(source))
    fp32 = next(cure for cure in finding.cures if cure.kind == "fp32")
    assert fp32.complete
    places = [spot.place.reader for spot in fp32.spots]
    assert any(position is not None and position.line == line_of(source) for position in places)


def test_what_a_gpu_would_keep_in_fp32_is_said(run: Run) -> None:
    assert (
        "on a GPU torch.autocast computes exp in FP32"
        in only(run(part("e = torch.exp(x * 20)\ny = e / e.sum(-1)[:, None]"), steps=1)).remark
    )


def test_the_line_of_a_backward_that_the_user_wrote(run: Run) -> None:
    source = part("y = Scale.apply(x)", CUSTOM)
    finding = only(run(source))
    place = location_of(finding.culprit.op)
    assert place is not None
    assert (finding.culprit.op.phase, place.line) == ("backward", line_of(source))
    assert [cure.kind for cure in finding.cures] == ["bf16"]


def test_the_forward_line_whose_backward_overflows(run: Run) -> None:
    """The gradient of sqrt at a small number, far over what FP16 holds, where the forward is harmless."""
    source = part("y = (torch.sqrt(F.relu(x) * 1e-7 + 1.2e-7) * 3000)  # BAD\ny = y * 3000")
    finding = only(run(source, scaler=False))
    place = location_of(finding.culprit.op)
    assert place is not None
    assert finding.culprit.op.phase == "backward"
    assert place.line in (line_of(source), line_of(source) + 1)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_mask_of_minus_infinity_is_normal(dtype: str, run: Run) -> None:
    source = part('y = torch.softmax(x.masked_fill(torch.arange(32) > 20, float("-inf")), -1)')
    result = run(source, dtype, dtype == "fp16")
    assert (result.verdict, result.steps) == ("clean", 2)


def test_skipped_steps_of_the_scaler_are_normal(run: Run) -> None:
    result = run(part("y = x * 300"), steps=10)
    assert (result.verdict, result.steps) == ("clean", 10)
    assert result.scaler["skipped"] > 0
    assert result.scaler["final_scale"] == 65536 / 2 ** result.scaler["skipped"]


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_what_fails_in_fp32_too_is_no_matter_of_precision(dtype: str, run: Run) -> None:
    source = part("y = torch.log(F.relu(x))  # BAD")
    result = run(source, dtype)
    finding = only(result)
    place = location_of(finding.culprit.op)
    assert place is not None
    assert (result.verdict, finding.culprit.kind, place.line) == ("not-precision", "not-precision", line_of(source))
    assert finding.cures == ()


def test_a_clean_run_gives_its_margins(run: Run) -> None:
    result = run(part("y = torch.tanh(x) * 1000"), steps=10)
    assert result.verdict == "clean"
    largest = result.margins["activation"]
    assert 100 < largest.value <= 1000
    assert largest.op.path == "part"
    assert result.margins["gradient"].value < result.limit == 65504


def test_what_runs_under_vmap_is_measured(run: Run) -> None:
    members = part("y = torch.vmap(lambda w: F.linear(x, w * 1000))(torch.stack([self.fc.weight] * 2)).sum(0)  # BAD")
    result = run(members, steps=2)
    assert result.verdict == "clean"
    assert result.margins["activation"].value > 100


def test_starved_gradients_are_found_and_a_scale_feeds_them(run: Run) -> None:
    source = part("y = x").replace("return self.head(self.part", "return 1e-6 * self.head(self.part")
    starved = run(source, scaler=False)
    assert starved.verdict == "precision"
    layers = {path for found in starved.underfed for path in (found.layer.path, *found.also)}
    assert layers >= {"head", "part.fc"}
    assert all(found.verified and "scale the loss by 2**" in found.cure for found in starved.underfed)
    fed = run(source, scaler=True)
    assert fed.verdict == "clean"
    losses = {layer.path: layer.gradient_share for layer in starved.layers}
    assert losses["part.fc"] > 0.5 > 0.01 > max(layer.gradient_share for layer in fed.layers)


TOWER = f"""{HEAD}
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(32, 32)

    def forward(self, x):
        return torch.tanh(self.fc(x))  # BAD


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(3)])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def make_model():
    return Net()


def make_batch():
    return torch.randn(8, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8)


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1]) * SMALL
"""


def test_one_line_that_starves_many_layers_is_said_once(run: Run) -> None:
    result = run(TOWER.replace("SMALL", "1e-7"), scaler=False)
    lines = [location_of(found.op).line for found in result.underfed if found.op]
    assert lines == [line_of(TOWER)]
    (found,) = result.underfed
    assert len(found.also) >= 2
    assert all(path.startswith("blocks.") for path in (found.layer.path, *found.also))
    report = render(result, lambda path: [])
    assert report.count("underflow in the backward") == report.count("cure") == 1
    assert result.to_json("amptune")["findings"][0]["also_in"] == list(found.also)


@pytest.mark.parametrize(("factor", "by_itself"), [("1e-5", True), ("1e-11", False)])
def test_gradients_that_vanish_altogether_are_fed_by_the_scale_that_fp32_asks_for(
    factor: str, by_itself: bool, run: Run
) -> None:
    """Where all of them are zero in the format, only its twin says how large they would be."""
    result = run(TOWER.replace("SMALL", factor), scaler=False)
    assert result.verdict == "precision"
    assert all(found.verified and "scale the loss by 2**" in found.cure for found in result.underfed)
    assert all(("by itself" in found.cure) == by_itself for found in result.underfed)
    assert all(("init_scale=2.0**" in found.cure) != by_itself for found in result.underfed)


def test_one_line_in_repeated_blocks_is_one_change(run: Run) -> None:
    source = f"""{HEAD}
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(32, 32)

    def forward(self, x):
        return x + self.fc(torch.exp(x * 0 + 12) * 0.0)  # BAD


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, x):
        for block in self.blocks:
            x = block(x.half())
        return x


def make_batch():
    return torch.ones(4, 32)
"""
    result = run(source)
    assert len(result.findings) == 1
    assert result.findings[0].also == ("blocks.1", "blocks.2", "blocks.3")
    assert result.verified_steps == 2


def test_one_line_that_modules_of_several_names_run_is_one_change(run: Run) -> None:
    """A norm by hand for queries and one for keys: whoever edits its line edits it for both."""
    norm = """
    class Norm(nn.Module):
        def forward(self, x):
            x = x * 30
            return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)  # BAD
    """
    source = part("y = self.query(x * 20) + self.key(x * 20)", norm)
    source = source.replace("        self.fc = ", "        self.query, self.key = Norm(), Norm()\n        self.fc = ")
    result = run(source)
    finding = only(result)
    assert finding.culprit.op.op == "mul"
    assert set(finding.also) | {finding.culprit.op.path} == {"part.query", "part.key"}
    cure = next(cure for cure in finding.cures if cure.kind == "fp32")
    assert {spot.op for spot in cure.spots} == {"mul"}
    assert len(result.findings) == 1
    assert result.verified_steps == 2


def test_fp8_reports_what_saturates_and_underflows(run: Run) -> None:
    result = run(part("y = torch.tanh(x) * 1000"), "fp8", False, 3)
    layers = {layer["module"]: layer for layer in result.fp8}
    assert set(layers) == {"inp", "part.fc", "head"}
    # tanh times 1000 passes 448 without a scale; with one nothing is lost.
    assert layers["head"]["input"]["saturated_unscaled"] > 0
    assert layers["inp"]["input"]["saturated_unscaled"] == 0
    assert layers["head"]["input"]["underflow"] < 0.05
    assert layers["head"]["gradient"]["largest"] > 0


def test_a_checkpointed_block_is_cured_where_it_is_computed_again(run: Run) -> None:
    source = part("x = x * 500\ny = x + (x * x).mean(-1, keepdim=True) * 1e-6  # BAD").replace(
        "self.part(F.relu(self.inp(x)))",
        "torch.utils.checkpoint.checkpoint(self.part, self.inp(x), use_reentrant=False)",
    )
    result = run(source.replace("import torch\n", "import torch\nimport torch.utils.checkpoint\n", 1))
    finding = only(result)
    assert finding.culprit.op.op == "mul"
    assert "fp32" in {cure.kind for cure in finding.cures if cure.complete}
    assert result.verified_steps == 2


def test_parameters_in_fp16_break_in_the_optimizer(run: Run) -> None:
    """Adam's eps is zero there; GradScaler refuses their gradients altogether."""
    source = part("y = x").replace("return Net()", "return Net().half()").replace("generator=generator), t", "t")
    source = source.replace("torch.randn(8, 32, torch", "torch.ones(8, 32).half(), torch")
    source += "\n\ndef make_optimizer(params):\n    return torch.optim.AdamW(params)\n"
    result = run(source)
    assert result.verdict == "precision"
    assert result.optimizer is not None
    assert "where eps 1e-08 is zero" in result.optimizer["message"]
    assert any("refuses to unscale" in note for note in result.notes)


@pytest.mark.parametrize(
    "body",
    [
        "s = x * 30 + m.to(x.dtype) * -1e9\ne = torch.exp(s)  # BAD\ny = e / e.sum(-1)[:, None]",
        "y = torch.softmax(x + m.to(x.dtype) * -1e9, 1) @ x.T\ny = (y * 9000 * 9000)  # BAD\ny = x + y.mean() * 1e-8",
    ],
)
def test_a_mask_beside_it_is_not_blamed_for_what_overflows(body: str, run: Run) -> None:
    """exp fed with the mask's -inf, and an op behind the softmax that the mask does no harm to."""
    source = part(f"m = (torch.arange(32) > 20).float()\n{body}")
    finding = only(run(source))
    place = location_of(finding.culprit.op)
    assert place is not None
    assert (finding.culprit.kind, place.line) == ("overflow", line_of(source))
    assert any(cure.kind == "fp32" and cure.complete for cure in finding.cures)


def test_a_mask_that_is_added_is_a_literal_to_replace(run: Run) -> None:
    source = part("m = torch.zeros(8, 1)\nm[2] = 1\ny = torch.softmax(x + m.to(x.dtype) * -1e9, -1)  # BAD")
    finding = only(run(source))
    assert finding.culprit.kind == "constant"
    assert [cure.kind for cure in finding.cures][0] == "mask"
