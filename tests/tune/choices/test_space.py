from __future__ import annotations

import dataclasses

import pytest
from torch import nn

from amptune.capture import capture
from amptune.core.choice import BF16, FP8, FP16, FP32
from amptune.core.formats import Format
from amptune.core.graph import INPUT, LOSS, Gemm, PrecisionGraph, Site
from amptune.core.tables import CostTable, Edge, SiteCost
from amptune.tune.allocation.costmodel import CostModel
from amptune.tune.allocation.explain import why_all_fp32, with_reasons
from amptune.tune.allocation.front import front_points
from amptune.tune.choices.buildspace import build_space, fp8_fits, is_pin_candidate
from amptune.tune.choices.edges import edges_of
from amptune.tune.choices.foundspace import role_of
from amptune.tune.choices.space import Group, Space
from amptune.tune.running.recipes import plan_candidate
from amptune.tune.running.training import training
from tests.tune.conftest import Make

ROWWISE = FP8[1]
BLOCKS = """
import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Linear(16, 16)
        self.k = nn.Linear(16, 16)
        self.v = nn.Linear(16, 16)

    def forward(self, x):
        weights = torch.softmax(self.q(x) @ self.k(x).transpose(-2, -1), -1)
        return weights @ self.v(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Attention() for _ in range(3))
        self.scale = nn.Parameter(torch.ones(16, 16))
        self.before = nn.Linear(16, 16)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        for block in self.blocks:
            x = x + self.drop(block(x))
        return self.before(x) @ (self.scale + torch.eye(16))


def make_model():
    return Net()


def make_batch():
    return torch.randn(2, 5, 16)


def loss_fn(output, batch):
    return output.softmax(-1).log().mean()
"""


PRODUCT = "self.before(x) @ (self.scale + torch.eye(16))"
ONE_DTYPE = "torch.lerp(self.before(x), self.scale[0] + torch.ones(16), 0.5)"
"""Autocast casts for a product; for this it does not."""


@pytest.fixture
def graph_and_space(make_bench: Make) -> tuple[PrecisionGraph, Space]:
    bench, batches = make_bench(BLOCKS.replace(PRODUCT, ONE_DTYPE))
    graph = capture(bench.target).graph
    pins = [site.id for site in graph if is_pin_candidate(site)]
    space = build_space(bench, graph, batches.train[0], pins=pins, losses=("fp32", "follow"))
    # As on a device with all of them: a CPU without FP16 would leave it out.
    groups = [
        dataclasses.replace(g, choices=(FP32, BF16, FP16, *FP8), fp8=frozenset({"blocks.0.q"})) if g.choices else g
        for g in space.groups
    ]
    return graph, dataclasses.replace(space, groups=tuple(groups))


def test_roles() -> None:
    assert role_of("blocks.11.attn.q") == "blocks.*.attn.q"
    assert role_of("layers.0.experts.3.w1") == "layers.*.experts.*.w1"
    assert role_of("conv1") == "conv1"
    assert role_of("0") == "*"


def test_what_meets_in_a_matmul_decides_together(graph_and_space: tuple[PrecisionGraph, Space]) -> None:
    _, space = graph_and_space
    groups = {site: group for group in space.groups for site in group.sites}
    attention = groups["blocks.0.q"]
    assert {"blocks.0.k", "blocks.0.v", "blocks.2.q", "blocks.2.v"} <= set(attention.sites)
    assert groups["before"].kind == "fixed", "it meets a result that no plan casts"
    assert "scale" not in groups, "with a constant it makes such a result"
    assert "drop" not in groups


def test_a_parameter_in_a_product_decides_with_what_it_meets(make_bench: Make) -> None:
    bench, batches = make_bench(BLOCKS.replace("(self.scale + torch.eye(16))", "self.scale"))
    space = build_space(bench, capture(bench.target).graph, batches.train[0])
    group = next(group for group in space.groups if "scale" in group.sites)
    assert "before" in group.sites
    assert group.kind == "module"
    assert group.how[group.sites.index("scale")] == "own"
    assert space.held() == {"scale"}
    plan = space.decode(space.uniform(BF16), CostTable({}, {}), {})
    assert (plan.sites["scale"].format, plan.sites["scale"].how) == (Format.BF16, "own")


def test_a_table_that_is_the_head_too_decides_with_what_it_multiplies(make_bench: Make) -> None:
    source = BLOCKS.replace("self.before(x) @ (self.scale + torch.eye(16))", "self.before(x) @ self.before.weight.T")
    bench, batches = make_bench(source)
    space = build_space(bench, capture(bench.target).graph, batches.train[0])
    group = next(group for group in space.groups if "before.weight" in group.sites)
    assert (group.kind, group.how[group.sites.index("before.weight")]) == ("module", "read")
    assert space.held() == {"before.weight"}
    assert space.why_fixed == {}


def test_what_is_computed_from_parameters_alone_decides_with_what_it_meets(make_bench: Make) -> None:
    """And nothing that a plan does not decide keeps the layers before it in FP32."""
    bench, batches = make_bench(BLOCKS.replace("(self.scale + torch.eye(16))", "(2 * self.scale).exp()"))
    space = build_space(bench, capture(bench.target).graph, batches.train[0])
    group = next(group for group in space.groups if "scale" in group.sites)
    assert "before" in group.sites
    assert group.how[group.sites.index("scale")] == "late"
    assert space.held() == {"scale"}
    point = space.uniform(BF16)
    plan = space.decode(point, CostTable({}, {}), {})
    assert (plan.sites["scale"].format, plan.sites["scale"].how) == (Format.BF16, "late")


def test_a_parameter_that_the_code_casts_to_what_it_meets_is_no_choice(make_bench: Make) -> None:
    bench, batches = make_bench(
        BLOCKS.replace("self.before(x) @ (self.scale + torch.eye(16))", "x @ self.scale.to(x.dtype)")
    )
    space = build_space(bench, capture(bench.target).graph, batches.train[0])
    assert space.held() == set()


def test_where_nothing_can_be_lowered_nothing_is_left_to_choose(make_bench: Make) -> None:
    source = BLOCKS.replace("x = x + self.drop(block(x))", "x = torch.exp(x - 9)").replace(PRODUCT, ONE_DTYPE)
    bench, batches = make_bench(source)
    graph = capture(bench.target).graph
    pins = [site.id for site in graph if is_pin_candidate(site)]
    assert pins
    space = build_space(bench, graph, batches.train[0], pins=pins, losses=("fp32", "follow"))
    assert [(group.name, group.kind) for group in space.groups] == [("before", "fixed")]
    assert space.choices() == {":loss": ("fp32",)}
    line = 1 + source[: source.index(ONE_DTYPE)].count("\n")
    assert f"before: its output meets a tensor that no plan casts in lerp (model.py:{line})" in why_all_fp32(space)


def test_functional_ops_can_be_pinned_but_the_loss_has_its_own_choice(
    graph_and_space: tuple[PrecisionGraph, Space],
) -> None:
    _, space = graph_and_space
    pins = {group.name: group.sites for group in space.groups if group.kind == "pin"}
    assert pins == {"Attention.forward#softmax": ("blocks.0#softmax.0", "blocks.1#softmax.0", "blocks.2#softmax.0")}


def test_a_pin_is_left_out_where_all_that_arrives_is_in_fp32(graph_and_space: tuple[PrecisionGraph, Space]) -> None:
    """Two plans that differ in it alone do the same, and are one."""
    _, space = graph_and_space
    attention = next(g for g in space.groups if "blocks.0.q" in g.sites)
    pins = {
        chosen: {
            name
            for name in space.decode(space.point({attention.name: chosen}), CostTable({}, {}), {}).sites
            if "softmax" in name
        }
        for chosen in ("fp32", "bf16")
    }
    assert pins["fp32"] == set()
    assert pins["bf16"] == {"blocks.0#softmax.0", "blocks.1#softmax.0", "blocks.2#softmax.0"}


def test_a_norm_by_hand_has_another_kernel_under_a_plan(make_bench: Make) -> None:
    bench, batches = make_bench(BY_HAND)
    space = build_space(bench, capture(bench.target).graph, batches.train[0])
    assert space.rewritten == {"norm", "fc"}


BY_HAND = """
import torch
from torch import nn


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(16)), 1e-6

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16))

    def forward(self, x):
        return x @ self.weight


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc, self.head = Norm(), Dense(), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.fc(self.norm(x)))


def make_model():
    return Net()


def make_batch():
    return torch.randn(4, 16), torch.randn(4, 4)


def loss_fn(output, batch):
    return (output.float() - batch[1]).square().mean()
"""


IN_FORWARD = """
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 16)
        self.head = nn.Linear(16, 13)
        self.close = nn.SmoothL1Loss()

    def forward(self, x, labels):
        hidden = self.inner(x)
        logits = self.head(hidden).softmax(-1)
        return logits, F.cross_entropy(logits, labels) + self.close(hidden, x)


def make_model():
    return Net()


def make_batch():
    return {"x": torch.randn(4, 16), "labels": torch.randint(13, (4,))}


def loss_fn(output, batch):
    return output[1]
"""


def test_a_loss_in_the_forward_is_in_fp32_wherever_a_layer_is_not(make_bench: Make) -> None:
    bench, batches = make_bench(IN_FORWARD)
    graph = capture(bench.target).graph
    pins = [site.id for site in graph if is_pin_candidate(site)]
    space = build_space(bench, graph, batches.train[0], pins=pins, losses=("fp32", "follow"))
    assert {group.name for group in space.groups if group.kind == "loss"} == {"Net.forward#cross_entropy", "close"}
    assert space.choices().keys() == {"inner", "head", "Net.forward#softmax", ":loss"}
    low = space.point({"inner": "bf16", "Net.forward#softmax": "follow", ":loss": "follow"})
    plan = space.decode(low, CostTable({}, {}), {})
    assert {name: site.format for name, site in plan.sites.items()} == {
        "inner": Format.BF16, "head": Format.FP32, "#cross_entropy.0": Format.FP32, "close": Format.FP32
    }  # fmt: skip
    model = CostModel(space, CostTable({}, {}), [])
    assert "as autocast does" in with_reasons(plan, model, low).sites["#cross_entropy.0"].why
    assert "#cross_entropy.0" not in space.decode(space.point({}), CostTable({}, {}), {}).sites
    into_losses = [edge.sources for edge in edges_of(graph, space) if edge.into == (LOSS,)]
    assert ("head",) in into_losses
    assert ("inner",) in into_losses


def test_a_point_becomes_a_plan(graph_and_space: tuple[PrecisionGraph, Space]) -> None:
    _, space = graph_and_space
    attention = next(g for g in space.groups if "blocks.0.q" in g.sites)
    table = CostTable({"blocks.0.q": {BF16: SiteCost(1.0, pad=64)}}, {})
    plan = space.decode(space.point({attention.name: "bf16", ":loss": "follow"}), table, {"target": "x.py"})
    assert plan.sites["blocks.0.q"].choice == BF16
    assert plan.sites["blocks.0.q"].pad == 64
    assert plan.sites["before"].choice == FP32, "what is fixed is still cast to FP32, whatever arrives"
    assert plan.sites["blocks.0#softmax.0"].how == "source"
    assert plan.loss_format is None
    assert not plan.scaler.enabled
    assert space.decode(space.point({attention.name: "fp16"}), table, {}).scaler.enabled
    assert (
        "blocks.0#softmax.0" not in space.decode(space.point({"Attention.forward#softmax": "follow"}), table, {}).sites
    ), "an op that is not pinned follows its inputs"


def test_fp8_goes_to_the_sites_that_it_fits_and_the_rest_run_in_bf16(
    graph_and_space: tuple[PrecisionGraph, Space],
) -> None:
    _, space = graph_and_space
    attention = next(g for g in space.groups if "blocks.0.q" in g.sites)
    plan = space.decode(space.point({attention.name: ROWWISE.label}), CostTable({}, {}), {})
    assert plan.sites["blocks.0.q"].choice == ROWWISE
    assert plan.sites["blocks.0.k"].choice == BF16
    assert attention.site_choices("blocks.0.k") == (FP32, BF16, FP16)
    assert not plan.scaler.enabled


def test_a_uniform_point_takes_what_is_legal() -> None:
    linear = Group("linear", ("linear",), "module", ("swap",), (FP32, BF16, ROWWISE), frozenset({"linear"}))
    norm = Group("norm", ("norm",), "module", ("swap",), (FP32, BF16))
    space = Space((linear, norm), tf32=False, channels_last=False)
    assert space.uniform(ROWWISE) == {"linear": "fp8_e4m3:rowwise", "norm": "bf16"}
    assert space.uniform(FP16) == {"linear": "fp32", "norm": "fp32"}
    assert space.offered() == (BF16, ROWWISE)


@pytest.mark.parametrize(
    ("module", "rows", "fits"),
    [
        (nn.Linear(32, 64), 16, True),
        (nn.Linear(32, 61), 16, False),
        (nn.Linear(24, 64), 16, False),
        (nn.Linear(32, 64), 10, False),
        (nn.Conv1d(32, 64, 1), 16, False),
    ],
)
def test_fp8_needs_a_linear_with_dimensions_in_sixteens(module: nn.Module, rows: int, fits: bool) -> None:
    out_features, in_features = module.weight.shape[:2]
    site = Site("fc", "linear", "module", "fc", gemms=(Gemm(rows, int(out_features), int(in_features)),))
    assert fp8_fits(module, site) is fits


def test_edges_look_through_what_follows(graph_and_space: tuple[PrecisionGraph, Space]) -> None:
    graph, space = graph_and_space
    edges = edges_of(graph, space)
    assert not any("#" in name for edge in edges for name in (*edge.sources, *edge.into))
    # The residual stream starts with the batch in FP32, so every reader in 16 bits casts it, whoever else wrote it.
    assert {edge.sources for edge in edges if edge.into == ("blocks.1.q",)} == {(INPUT,)}
    branches = tuple(f"blocks.{i}.{name}" for i in range(3) for name in "kqv")
    assert edges.count(Edge(branches, (INPUT,), 2 * 5 * 16, 0.5)) == 3, "each branch casts its gradient back"


def test_the_front_starts_with_the_cheapest_and_has_no_duplicates(
    graph_and_space: tuple[PrecisionGraph, Space],
) -> None:
    graph, space = graph_and_space
    sites = [site for group in space.module_groups() for site in group.sites]
    costs = {FP32: 3.0, BF16: 1.0, FP16: 2.0} | dict.fromkeys(FP8, 2.5)
    table = CostTable({site: {c: SiteCost(ms) for c, ms in costs.items()} for site in sites}, {})
    model = CostModel(space, table, edges_of(graph, space))
    points = front_points(model)
    assert {points[0][group.name] for group in space.module_groups()} == {"bf16"}
    assert len({tuple(sorted(p.items())) for p in points}) == len(points)
    assert {label for point in points for label in point.values()} >= {"fp16", "fp8_e4m3:rowwise", "follow"}
    assert model.predicted(points[0]) == min(map(model.predicted, points))


def meeting_space() -> Space:
    names, choices = ("a", "b", "c"), (FP32, BF16, FP16, ROWWISE)
    groups = tuple(Group(name, (name,), "module", ("swap",), choices, frozenset({name})) for name in names)
    return Space(groups, tf32=False, channels_last=False, meets=(frozenset("ab"), frozenset("bc")))


def test_fp16_and_bf16_meet_in_no_op() -> None:
    space = meeting_space()
    assert space.is_legal({"a": "fp16", "b": "fp32", "c": "bf16"})
    assert not space.is_legal({"a": "fp16", "b": "fp8_e4m3:rowwise", "c": "fp32"}), "an FP8 product gives BF16"
    point = {"a": "fp16", "b": "fp16", "c": "bf16"}
    assert space.made_legal(point) == {"a": "bf16", "b": "bf16", "c": "bf16"}
    assert space.made_legal({"a": "fp16", "b": "fp16", "c": "fp32"}) == {"a": "fp16", "b": "fp16", "c": "fp32"}


def test_what_meets_is_read_from_the_graph(make_bench: Make) -> None:
    bench, batches = make_bench(BLOCKS.replace("x = x + self.drop(block(x))", "x = block(x) + self.before(x)"))
    space = build_space(bench, capture(bench.target).graph, batches.train[0])
    met = [names for names in space.meets if any("q" in name for name in names)]
    assert len(met) <= 1
    for names in space.meets:
        assert len(names) > 1


def test_another_space_has_another_fingerprint(graph_and_space: tuple[PrecisionGraph, Space]) -> None:
    _, space = graph_and_space
    other = Space(space.groups[1:], space.tf32, space.channels_last, space.losses)
    assert space.fingerprint() == Space(space.groups, False, space.channels_last, space.losses).fingerprint()
    assert space.fingerprint() != other.fingerprint()


WEIGHTED = """
import torch
import torch.nn.functional as F
from torch import nn


def make_model():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def make_batch():
    return torch.randn(4, 8), torch.tensor([0, 1, 2, 1])


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1], weight=torch.tensor([1.0, 2.0, 0.5]))
"""


def test_a_loss_that_takes_fp32_alone_is_given_that_and_keeps_no_layer_there(make_bench: Make) -> None:
    """With weights of the classes in FP32 cross_entropy raises on a 16-bit output."""
    bench, batches = make_bench(WEIGHTED)
    graph = capture(bench.target).graph
    space = build_space(bench, graph, batches.train[0], losses=("fp32", "follow"))
    assert space.losses == ("fp32",)
    assert {group.kind for group in space.groups} == {"module"}
    plan = space.decode(space.uniform(BF16), CostTable({}, {}), {})
    with training(bench, plan_candidate(plan)) as run:
        run.step(batches.train[0])
    bench, batches = make_bench(WEIGHTED.replace(", weight=torch.tensor([1.0, 2.0, 0.5])", ""))
    plain = build_space(bench, graph, batches.train[0], losses=("fp32", "follow"))
    assert plain.losses == ("fp32", "follow")


HUBER = WEIGHTED.replace("torch.tensor([0, 1, 2, 1])", "torch.randn(4, 3)").replace(
    "F.cross_entropy(output, batch[1], weight=torch.tensor([1.0, 2.0, 0.5]))", "F.huber_loss(output, batch[1])"
)


def test_a_loss_whose_gradient_takes_one_dtype_is_not_given_another(make_bench: Make) -> None:
    """huber_loss of a 16-bit output and a target in FP32 promotes in its forward and raises in its backward."""
    bench, batches = make_bench(HUBER)
    graph = capture(bench.target).graph
    space = build_space(bench, graph, batches.train[0], losses=("fp32", "follow"))
    assert space.losses == ("fp32",)
    bench, batches = make_bench(
        HUBER.replace("F.huber_loss(output, batch[1])", "F.huber_loss(output, batch[1].to(output))")
    )
    plain = build_space(bench, graph, batches.train[0], losses=("fp32", "follow"))
    assert plain.losses == ("fp32", "follow")


@pytest.mark.parametrize(
    ("loss", "losses"),
    [
        ("F.l1_loss(output.float(), batch[1])", ("fp32",)),
        ("(output - batch[1]).square().mean().sqrt()", ("fp32",)),
        ("(output.flatten() - batch[1].flatten()).abs().mean()", ("fp32",)),
        ("(output - batch[1].to(output)).square().mean()", ("fp32", "follow")),
        ("F.softplus(-output).mean()", ("fp32", "follow")),
        ("(output + torch.rand(4, 3) - batch[1]).abs().mean()", ("fp32", "follow")),
    ],
)
def test_a_loss_that_is_in_fp32_whatever_arrives_is_no_choice(
    make_bench: Make, loss: str, losses: tuple[str, ...]
) -> None:
    """Plans that differed in nothing else were measured twice."""
    bench, batches = make_bench(HUBER.replace("F.huber_loss(output, batch[1])", loss))
    graph = capture(bench.target).graph
    assert build_space(bench, graph, batches.train[0], losses=("fp32", "follow")).losses == losses


DOUBLE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(torch.exp(-x.double() ** 2).float()).softmax(-1)


def make_model():
    return Net()


def make_batch():
    return torch.randn(4, 8)


def loss_fn(output, batch):
    return output.square().mean()
"""


def test_an_op_on_double_precision_is_no_choice(make_bench: Make) -> None:
    bench, _ = make_bench(DOUBLE)
    graph = capture(bench.target).graph
    assert [site.op for site in graph if is_pin_candidate(site)] == ["softmax"]
