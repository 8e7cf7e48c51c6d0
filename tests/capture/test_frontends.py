"""The three ways of capturing see the same sites."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
from torch import nn

from amptune.capture import Capture, capture, record
from amptune.core.graph import PrecisionGraph
from amptune.core.ops import OPS
from amptune.errors import CaptureError, UsageError
from tests.capture.conftest import Load
from tests.capture.zoo import RECORDED, ZOO


def described(graph: PrecisionGraph) -> dict[str, object]:
    sites = {site.id: dataclasses.replace(site, nodes=(), attrs={}) for site in graph}
    attrs = {f"{site.id} attrs": dict(site.attrs) for site in graph}
    edges = {(a, b): sorted(map(repr, tensors)) for a, b, tensors in graph.edges()}
    return {**sites, **attrs, **{str(key): value for key, value in edges.items()}}


@pytest.mark.parametrize("name", ZOO)
def test_all_frontends_that_can_see_a_model_agree_on_it(name: str, load: Load) -> None:
    example = ZOO[name]
    target = load(example.source, name="Net", inputs=example.inputs)
    captures = [capture(target, frontends=[frontend]) for frontend in example.frontends]
    for found in captures:
        assert set(example.sites) <= {site.id for site in found.graph}
        assert described(found.graph) == described(captures[0].graph), found.frontend


@pytest.mark.parametrize("name", ZOO)
def test_the_default_order_finds_a_frontend(name: str, load: Load) -> None:
    example = ZOO[name]
    found = capture(load(example.source, name="Net", inputs=example.inputs))
    assert found.frontend in example.frontends
    assert len(found.graph) >= len(example.sites)
    assert {site.op for site in found.graph if not site.opaque} <= OPS.keys()


@pytest.mark.parametrize("frontend", ["export", *RECORDED])
def test_captures_are_repeatable(frontend: str, load: Load) -> None:
    example = ZOO["attention by hand"]
    target = load(example.source, name="Net", inputs=example.inputs)
    first, second = (capture(target, frontends=[frontend]) for _ in range(2))
    assert first.graph.fingerprint() == second.graph.fingerprint()
    assert described(first.graph) == described(second.graph)


def test_a_capture_leaves_the_random_state_alone(load: Load) -> None:
    target = load(ZOO["convolutions"].source, name="Net", inputs=("2x3x32x32",))

    def draw() -> tuple[list[float], float, float]:
        return torch.rand(3).tolist(), random.random(), float(np.random.rand())

    def seed() -> None:
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)

    seed()
    expected = draw()
    seed()
    capture(target)
    assert draw() == expected


def test_a_capture_leaves_torch_as_it_was(load: Load) -> None:
    before = (nn.Module.__call__, nn.Module.register_parameter, torch.autograd.Function.apply, torch.autocast.__init__)
    capture(load(ZOO["autocast regions"].source, name="Net", inputs=("4x8",)))
    after = (nn.Module.__call__, nn.Module.register_parameter, torch.autograd.Function.apply, torch.autocast.__init__)
    assert before == after


THREADS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, torch.get_num_threads())

    def forward(self, x):
        return self.fc(x).reshape(4, -1, torch.get_num_threads())
"""


@pytest.mark.parametrize(("frontend", "threads"), [("export", 1), ("record-fake", 1), ("record-real", 3)])
def test_forwards_on_fakes_take_one_thread(frontend: str, threads: int, load: Load) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = capture(load(THREADS, name="Net", inputs=("4x8",)), frontends=[frontend])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    nodes = list(found.graph_module.graph.nodes)
    assert [node.meta["val"].shape for node in nodes if "val" in node.meta][-1] == (4, 3 // threads, threads)


def test_the_recorded_graph_computes_what_the_model_computes(load: Load) -> None:
    target = load(ZOO["attention by hand"].source, name="Net", inputs=("2x8x16",))
    found = capture(target, frontends=["record-real"], train=False)
    batch = target.make_batch()
    assert found.graph_module(batch)[0].shape == (2, 8, 16)
    torch.manual_seed(0)
    model = target.make_model().eval()
    model.load_state_dict({name: _attribute(found.graph_module, name) for name in model.state_dict()})
    torch.manual_seed(1)
    expected = model(batch)
    torch.manual_seed(1)
    assert torch.equal(found.graph_module(batch)[0], expected)


def _attribute(module: nn.Module, name: str) -> torch.Tensor:
    *path, last = name.split(".")
    for part in path:
        module = getattr(module, part)
    return getattr(module, last)


@pytest.mark.parametrize("frontend", ["export", *RECORDED])
def test_nodes_carry_op_and_value(frontend: str, load: Load) -> None:
    found = capture(load(ZOO["convolutions"].source, name="Net", inputs=("2x3x32x32",)), frontends=[frontend])
    calls = [node for node in found.graph_module.graph.nodes if node.op.startswith("call")]
    assert calls
    assert all(node.meta["amptune_op"] and node.meta["val"] is not None for node in calls)
    covered = {name for site in found.graph for name in site.nodes}
    assert covered <= {node.name for node in calls}


def test_the_loss_is_part_of_the_graph(load: Load) -> None:
    target = load(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.out = nn.Linear(8, 5)

            def forward(self, x):
                return self.out(x)

        def make_model(): return Net()
        def make_batch(): return torch.randn(4, 8), torch.randint(5, (4,))
        def loss_fn(output, batch): return F.cross_entropy(output * 2, batch[1])
        """
    )
    for frontend in ("export", *RECORDED):
        found = capture(target, frontends=[frontend])
        assert found.has_loss
        assert [site.id for site in found.graph] == ["out", "loss_fn#mul.0", "loss_fn#cross_entropy.0"]
        assert found.graph["loss_fn#cross_entropy.0"].code == "loss_fn#cross_entropy.0"
        assert found.graph.tensors("loss_fn#cross_entropy.0", "<output>")[0].shape == ()


def test_a_loss_inside_the_model_counts_as_one(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(8, 5)

        def forward(self, x):
            logits = self.out(x)
            return {"logits": logits, "loss": logits.square().mean()}
    """
    assert capture(load(text, inputs=("4x8",))).has_loss
    assert not capture(load(ZOO["lazy layers"].source, name="Net", inputs=("2x3x8x8",))).has_loss


def test_export_that_takes_another_path_is_not_believed(load: Load) -> None:
    target = load(
        """
        from torch._subclasses import FakeTensor

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
                self.register_buffer("steps", torch.zeros(1))

            def forward(self, x, mask):
                return self.a(x) if isinstance(mask, FakeTensor) else self.b(x)
        """,
        name="Net",
        inputs=("x=4x8", "mask=4:int64"),
    )
    found = capture(target)
    assert found.frontend == "record-fake"
    assert [site.id for site in found.graph] == ["b"]
    assert not found.notes


def test_code_that_asks_whether_it_is_compiled_is_told_no(load: Load) -> None:
    target = load(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

            def forward(self, x):
                return self.a(x) if torch.compiler.is_compiling() else self.b(x)
        """,
        inputs=("4x8",),
    )
    assert [site.id for site in capture(target, frontends=["export"]).graph] == ["b"]


def test_large_models_are_not_exported(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(500)))

        def forward(self, x):
            return self.layers(x)
    """
    found = capture(load(text, inputs=("2x4",)))
    assert (found.frontend, len(found.graph)) == ("record-fake", 500)


def test_long_loops_are_not_exported(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(4, 4)

        def forward(self, x):
            for _ in range(800):
                x = self.cell(x) + 1
            return x
    """
    found = capture(load(text, inputs=("2x4",)))
    assert (found.frontend, len(found.graph), found.graph["cell"].calls) == ("record-fake", 2, 800)
    assert "torch.export was left out: a forward makes 1,604 calls" in found.notes


def test_unknown_frontends_are_refused(load: Load) -> None:
    target = load(ZOO["lazy layers"].source, name="Net", inputs=("2x3x8x8",))
    with pytest.raises(UsageError, match="symbolic"):
        capture(target, frontends=["symbolic"])
    with pytest.raises(UsageError):
        capture(target, frontends=[])


def test_a_real_run_with_few_samples_gives_the_shapes_of_all(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv1d(4, 6, 3), nn.Linear(6, 5)

        def forward(self, x):
            y = self.conv(x.reshape(-1, 4, 10)).mean(-1)
            return self.out(y) if y.sum() < 1e9 else y
    """
    target = load(text, inputs=("64x2x4x10",))
    full = capture(target, frontends=["record-real"])
    monkeypatch.setattr("amptune.capture.frontends.LARGE_RUN", 0)
    small = capture(target, frontends=["record-real"])
    assert any("2 of the 64 samples" in note for note in small.notes)
    assert described(small.graph) == described(full.graph)
    assert small.graph["conv"].outputs[0].shape == (128, 6, 8)


def test_a_path_that_depends_on_the_samples_keeps_the_small_shapes(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(8, 8)

        def forward(self, x):
            for _ in range(len(x)):
                x = self.out(x) if x.sum() < 1e9 else x
            return x
    """
    monkeypatch.setattr("amptune.capture.frontends.LARGE_RUN", 0)
    found = capture(load(text, inputs=("64x8",)))
    assert found.graph["out"].outputs[0].shape == (2, 8)
    assert any("depends on the samples" in note for note in found.notes)


def test_a_model_too_large_for_a_real_run_says_so(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.big, self.out = nn.Linear(10_000_000, 1_000_000), nn.Linear(8, 8)

        def forward(self, x):
            return self.out(x) if x.sum() < 1 else self.big(x)
    """
    with pytest.raises(CaptureError, match=r"40 TB"):
        capture(load(text, inputs=("64x8",)))


def test_scripted_code_is_one_opaque_site_in_a_real_run(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), torch.jit.trace(nn.Sequential(nn.Linear(8, 8)), torch.ones(1, 8))
            self.c = nn.Linear(8, 8)

        def forward(self, x):
            return self.c(self.b(self.a(x)))
    """
    found: Capture = capture(load(text, inputs=("4x8",)), frontends=["record-real"])
    assert [site.id for site in found.graph] == ["a", "b", "c"]
    assert found.graph["b"].opaque
    assert [site.id for site in found.graph.producers("c")] == ["b"]


def test_code_behind_a_disabled_torch_function_is_exported_too(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            y = self.a(x)
            with torch._C.DisableTorchFunction():
                y = y * 2
            return self.b(y)
    """
    graph = capture(load(text, inputs=("4x8",)), frontends=["export"]).graph
    assert [site.id for site in graph] == ["a", "#mul.0", "b"]
    assert graph.producers("b") == [graph["#mul.0"]]


def test_a_batch_that_cannot_be_cut_runs_whole(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(8, 8)

        def forward(self, x):
            y = self.out(x.view(64, 8))
            return y if y.sum() < 1e9 else x
    """
    monkeypatch.setattr("amptune.capture.frontends.LARGE_RUN", 0)
    found = capture(load(text, inputs=("64x8",)))
    assert found.graph["out"].outputs[0].shape == (64, 8)
    assert any("whole batch had to run" in note for note in found.notes)


def test_a_batch_of_another_type_is_looked_into(load: Load) -> None:
    text = """
    class Graph:
        def __init__(self):
            self.x, self.edges = torch.randn(10, 7), torch.randint(10, (2, 40))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(7, 3)

        def forward(self, graph):
            source, target = graph.edges
            x = self.fc(graph.x)
            return torch.zeros_like(x).index_add_(0, target, x[source])

    def make_model(): return Net()
    def make_batch(): return Graph()
    """
    graph = capture(load(text)).graph
    assert [site.id for site in graph] == ["fc", "#index.0", "#index_add.0"]
    assert graph["fc"].sources == ("<input>",)


@pytest.mark.parametrize("frontend", ["export", "record-fake", "record-real"])
def test_parameters_may_have_the_names_of_a_graph_modules_own_attributes(load: Load, frontend: str) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.code, self.graph = nn.Parameter(torch.randn(4, 8)), nn.Linear(8, 8)

        def forward(self, x):
            return self.graph(x) @ self.code.T
    """
    found = capture(load(text, name="Net", inputs=("2x8",)), frontends=[frontend]).graph
    assert {param.name for site in found for param in site.params} == {"code", "graph.weight", "graph.bias"}


@pytest.mark.parametrize("frontend", ["export", "record-fake", "record-real"])
def test_modules_may_have_the_names_of_keywords(load: Load, frontend: str) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleDict({"class": nn.Linear(8, 4), "is": nn.LayerNorm(8)})

        def forward(self, x):
            return self.heads["class"](self.heads["is"](x))
    """
    found = capture(load(text, name="Net", inputs=("2x8",)), frontends=[frontend]).graph
    assert [site.id for site in found] == ["heads.is", "heads.class"]
    assert {param.name for site in found for param in site.params} >= {"heads.class.weight", "heads.is.bias"}


def test_nested_tensors_are_refused_with_what_to_do(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, x):
            rows = torch.nested.as_nested_tensor([x[:2], x[2:]], layout=torch.jagged)
            return self.fc(rows).values()
    """
    with pytest.raises(CaptureError, match="nested tensors") as raised:
        capture(load(text, name="Net", inputs=("5x8",)))
    assert "pad the samples" in raised.value.hint


@pytest.mark.parametrize("kernel", ["flex_attention", "torch.compile(flex_attention)"])
def test_flex_attention_is_one_site_though_a_cpu_has_no_backward_for_it(kernel: str, load: Load) -> None:
    text = f"""
    from torch.nn.attention import flex_attention as module
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    attend = {kernel}


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(32, 96)

        def forward(self, x):
            q, k, v = self.qkv(x).view(2, 128, 3, 2, 16).permute(2, 0, 3, 1, 4)
            near = create_block_mask(lambda b, h, i, j: i >= j, None, None, 128, 128, device=x.device)
            return attend(q, k, v.tanh(), score_mod=lambda s, b, h, i, j: 20 * torch.tanh(s / 20), block_mask=near)
    """
    found = capture(load(text, name="Net", inputs=("2x128x32",)))
    (site,) = [site for site in found.graph if site.op == "flex_attention"]
    assert [(gemm.batch, gemm.m, gemm.n, gemm.k) for gemm in site.gemms] == [(4, 128, 128, 16), (4, 128, 16, 128)]
    assert site.outputs[0].shape == (2, 2, 128, 16)
    assert site.outputs[0].requires_grad
    assert not [note for note in found.notes if "vmap" in note]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("frontend", [*RECORDED, "export"])
def test_parts_that_run_again_in_the_backward_are_named(reentrant: bool, frontend: str, load: Load) -> None:
    text = f"""
    from torch.utils.checkpoint import checkpoint


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.fc, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

        def part(self, x):
            return torch.tanh(self.fc(x))

        def forward(self, x):
            return self.last(checkpoint(self.part, self.first(x), use_reentrant={reentrant}))
    """
    for train, count in ((True, 1), (False, 0)):
        notes = capture(load(text, name="Net", inputs=("2x8",)), frontends=[frontend], train=train).notes
        said = [note for note in notes if "torch.utils.checkpoint runs the forward of 2 sites again" in note]
        assert len(said) == count


def test_a_model_without_checkpoints_says_nothing_of_them(load: Load) -> None:
    notes = capture(load("Net = lambda: nn.Linear(8, 8)", name="Net", inputs=("2x8",))).notes
    assert not [note for note in notes if "checkpoint" in note]


LOOP = """
class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x, h):
        return torch.tanh(self.fc(x) + h)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = Cell()

    def forward(self, x):
        h, outputs = x.new_zeros(4, 8), torch.zeros(4, 16, 8)
        for step in range(16):
            h = self.cell(x[:, step], h)
            outputs[:, step] = h
        return outputs
"""


def test_steps_of_a_loop_are_calls_of_the_same_sites(load: Load) -> None:
    found = capture(load(LOOP, name="Net", inputs=("4x16x8",)), frontends=["record-fake"])
    assert {(site.id, site.calls) for site in found.graph} >= {
        ("cell.fc", 16), ("cell#add.0", 16), ("cell#tanh.0", 16),
    }  # fmt: skip
    real = capture(load(LOOP, name="Net", inputs=("4x16x8",)), frontends=["record-real"])
    assert described(found.graph) == described(real.graph)


def test_a_long_capture_says_how_far_it_is(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "SAID_EVERY", 30)
    said: list[str] = []
    found = capture(load(LOOP, name="Net", inputs=("4x16x8",)), frontends=["record-fake"], say=said.append)
    assert len(said) == len(_calls(found)) // 30 > 1
    assert said[0].startswith("30 calls recorded so far, now in cell")


def _calls(found: Capture) -> set[int]:
    return {node.meta["amptune_call"].number for node in found.graph_module.graph.nodes if "amptune_call" in node.meta}
