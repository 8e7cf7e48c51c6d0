"""Sites, their numbers and names, and the tensors between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from amptune.capture import TargetSpec, capture, load_target
from amptune.core.graph import INPUT, OUTPUT, Gemm, PrecisionGraph
from tests.capture.conftest import Load
from tests.capture.zoo import ZOO


def graph_of(load: Load, text: str, *inputs: str) -> PrecisionGraph:
    return capture(load(text, name="Net", inputs=inputs), frontends=["record-fake"]).graph


def edges(graph: PrecisionGraph) -> set[tuple[str, str]]:
    return {(source, target) for source, target, _ in graph.edges()}


def test_attention_by_hand(load: Load) -> None:
    graph = graph_of(load, ZOO["attention by hand"].source, "2x8x16")
    assert [site.id for site in graph] == list(ZOO["attention by hand"].sites)
    assert graph["qkv"].gemms == (Gemm(m=16, n=48, k=16),)
    assert graph["#matmul.0"].gemms == (Gemm(m=8, n=8, k=16, batch=2),)
    assert graph["#matmul.1"].gemms == (Gemm(m=8, n=16, k=8, batch=2),)
    assert graph["qkv"].flops == 2 * 16 * 48 * 16
    assert graph["qkv"].bytes_moved == 4 * (2 * 8 * 16 + 48 * 16 + 48 + 2 * 8 * 48)
    assert graph["#div.0"].attrs["scalars"] == {1: 4.0}
    assert graph["#softmax.0"].attrs["dim"] == -1
    assert graph["#dropout.0"].attrs["p"] == 0.1


def test_views_and_casts_are_part_of_the_edges(load: Load) -> None:
    graph = graph_of(load, ZOO["attention by hand"].source, "2x8x16")
    assert edges(graph) == {
        (INPUT, "qkv"), ("qkv", "#matmul.0"), ("#matmul.0", "#div.0"), ("#div.0", "#masked_fill.0"),
        ("#masked_fill.0", "#softmax.0"), ("#softmax.0", "#dropout.0"), ("#dropout.0", "#matmul.1"),
        ("qkv", "#matmul.1"), ("#matmul.1", "out"), ("out", "#add.0"), (INPUT, "#add.0"), ("#add.0", OUTPUT),
    }  # fmt: skip
    assert [tensor.shape for tensor in graph.tensors("qkv", "#matmul.0")] == [(2, 8, 16), (2, 16, 8)]
    assert graph["#add.0"].sources == (INPUT, "out")


def test_sites_stand_in_order_of_their_calls(load: Load) -> None:
    graph = graph_of(load, ZOO["transformer layers of torch"].source, "2x5x16")
    names = [site.id for site in graph]
    assert (
        names.index("encoder.layers.0.self_attn")
        < names.index("encoder.layers.0.linear1")
        < names.index("decoder.norm1")
    )


def test_tied_and_shared(load: Load) -> None:
    graph = graph_of(load, ZOO["tied and shared"].source, "4x6:int64:50")
    assert [site.id for site in graph] == ["embed", "layer", "#relu.0", "head"]
    assert (graph["layer"].calls, len(graph["layer"].gemms)) == (2, 2)
    assert graph["layer"].flops == 2 * (2 * 24 * 16 * 16)
    assert (graph["head"].params[0].name, graph["head"].params[0].key) == ("head.weight", "embed.weight")
    assert graph["embed"].params[0].key == "embed.weight"
    assert graph["layer"].params[0].key == "layer.weight"
    assert {("embed", "layer"), ("layer", "#relu.0"), ("#relu.0", "layer"), ("layer", "head")} <= edges(graph)


def test_an_embedding_reads_only_the_rows_that_it_looks_up(load: Load) -> None:
    graph = graph_of(load, ZOO["tied and shared"].source, "4x6:int64:50")
    assert graph["embed"].bytes_moved == 24 * 8 + 2 * 24 * 16 * 4
    assert graph["embed"].flops == 0


def test_convolutions(load: Load) -> None:
    graph = graph_of(load, ZOO["convolutions"].source, "2x3x32x32")
    assert graph["down"].gemms == (Gemm(m=2 * 15 * 15, n=16, k=27),)
    assert graph["up"].gemms == (Gemm(m=2 * 15 * 15, n=4 * 16, k=8, batch=2),)
    assert graph["down"].attrs["stride"] == [2, 2]
    assert graph["up"].attrs["groups"] == 2
    assert graph["norm"].attrs["eps"] == 1e-5
    assert [tensor.shape for tensor in graph["norm"].inputs] == [(2, 8, 32, 32)]
    assert graph["#gelu.0"].attrs == {"approximate": "tanh"}
    assert graph["#interpolate.0"].attrs["mode"] == "bilinear"
    assert "channels_last" not in graph["down"].attrs


def test_channels_last_is_seen(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, x):
            return self.b(self.a(x.contiguous(memory_format=torch.channels_last)))
    """
    graph = graph_of(load, text, "2x3x8x8")
    assert graph["a"].attrs["channels_last"] is True
    assert graph["b"].attrs["channels_last"] is True


def test_recurrent_layers(load: Load) -> None:
    graph = graph_of(load, ZOO["recurrent layers"].source, "4x6:int64:50")
    assert graph["lstm"].gemms[:2] == (Gemm(m=24, n=128, k=16), Gemm(m=4, n=128, k=32, batch=6))
    assert len(graph["lstm"].gemms) == 8
    assert graph["gru"].gemms == (Gemm(m=24, n=48, k=64), Gemm(m=6, n=48, k=16, batch=4))
    assert (graph["cell"].calls, graph["cell"].op) == (6, "lstm_cell")
    assert all(graph[name].opaque for name in ("lstm", "gru", "cell"))
    assert len(graph["lstm"].params) == 16


def test_attention_layers_are_one_opaque_site(load: Load) -> None:
    graph = graph_of(load, ZOO["transformer layers of torch"].source, "2x5x16")
    site = graph["encoder.layers.0.self_attn"]
    assert (site.op, site.opaque, site.kind) == ("multi_head_attention", True, "module")
    assert site.flops == 4 * (2 * 10 * 16 * 16) + 2 * (2 * 8 * 5 * 5 * 4)
    assert [param.name.removeprefix(f"{site.id}.") for param in site.params] == [
        "in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias",
    ]  # fmt: skip
    assert not any(name.startswith(f"{site.id}.") for name in (other.id for other in graph))


def test_custom_functions_are_opaque(load: Load) -> None:
    graph = graph_of(load, ZOO["custom autograd function"].source, "4x8")
    site = graph["#Swish.0"]
    assert (site.op, site.opaque, site.kind, site.code) == ("Swish", True, "function", "")
    assert site.gemms == (Gemm(m=4, n=8, k=8),)
    assert [param.name for param in site.params] == ["weight"]
    assert site.outputs[0].requires_grad


def test_subclasses_of_layers(load: Load) -> None:
    graph = graph_of(load, ZOO["subclasses of layers"].source, "4x8")
    assert graph["b"].opaque
    assert graph["b"].module_type.endswith("model.Renamed")
    assert graph["a#linear.0"].code == "Scaled.forward#linear.0"
    assert graph["a#linear.0"].module == "a"
    assert [param.name for param in graph["a#mul.0"].params] == ["a.weight"]


def test_autocast_regions_and_casts_are_recorded(load: Load) -> None:
    graph = graph_of(load, ZOO["autocast regions"].source, "4x8")
    assert graph["a"].attrs["autocast"] == "bfloat16"
    assert graph["#softmax.0"].attrs["autocast"] is False
    assert graph["#softmax.0"].attrs["casts"] == {0: "float32"}
    assert "autocast" not in graph["norm"].attrs
    assert graph["a"].outputs[0].dtype == "bfloat16"
    assert graph.tensors("a", "#softmax.0")[0].dtype == "float32"


def test_a_region_for_an_absent_device_is_recorded_as_written(load: Load) -> None:
    text = """
    class Net(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)

        def forward(self, x):
            with torch.autocast("cuda", dtype=torch.float16):
                return F.linear(x, self.weight)
    """
    assert graph_of(load, text, "2x4")["#linear.0"].attrs["autocast"] == "float16"


@pytest.mark.parametrize(
    "text",
    [
        """
        class Net(nn.Linear):
            def __init__(self):
                super().__init__(4, 4)

            @torch.autocast("cuda", dtype=torch.float16)
            def forward(self, x):
                return F.linear(x, self.weight)
        """,
        """
        class Net(nn.Linear):
            def __init__(self):
                super().__init__(4, 4)
                self.region = torch.autocast("cuda", dtype=torch.float16)

            def forward(self, x):
                with self.region:
                    return F.linear(x, self.weight)
        """,
    ],
    ids=["decorator", "attribute"],
)
def test_a_region_made_before_the_forward_is_recorded_as_written(load: Load, text: str) -> None:
    assert graph_of(load, text, "2x4")["#linear.0"].attrs["autocast"] == "float16"


def test_a_shape_that_depends_on_values_of_the_batch_is_captured(load: Load) -> None:
    text = """
    class Net(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)

        def forward(self, x, edges):
            return super().forward(x)[edges[0][edges[0] > 0]]

    def make_model():
        return Net()

    def make_batch():
        return {"x": torch.randn(6, 4), "edges": torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0]])}
    """
    assert capture(load(text)).graph["#index.0"].outputs[0].shape == (3, 4)


def test_each_result_of_a_broadcast_comes_from_its_own_tensor(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            first, second = torch.broadcast_tensors(self.fc(x), x[:1].exp())
            return second.log()
    """
    assert graph_of(load, text, "2x4")["#log.0"].sources == ("#exp.0",)


def test_a_cast_that_changes_nothing_is_seen(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            y = self.fc(x)
            return torch.exp(y.float()) + torch.log(y.to("cpu"))
    """
    graph = graph_of(load, text, "2x4")
    assert graph["#exp.0"].attrs == {"casts": {0: "float32"}}
    assert graph["#log.0"].attrs == {}
    assert graph.producers("#exp.0") == graph.producers("#log.0") == [graph["fc"]]


def test_integer_arithmetic_is_no_site(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(50, 4)

        def forward(self, ids):
            shifted = (ids + 1) % 50
            return self.embed(shifted) * (shifted > 3).unsqueeze(-1)
    """
    graph = graph_of(load, text, "2x4:int64:50")
    assert [site.id for site in graph] == ["embed", "#mul.0"]
    assert edges(graph) == {(INPUT, "embed"), (INPUT, "#mul.0"), ("embed", "#mul.0"), ("#mul.0", OUTPUT)}


def test_readers_after_a_write_depend_on_the_writer(load: Load) -> None:
    graph = graph_of(load, ZOO["writes into tensors"].source, "4x8")
    found = edges(graph)
    assert {
        ("a", "#copy.0"),
        ("b", "#add.0"),
        ("#copy.0", "#mul.0"),
        ("#copy.1", "#mul.0"),
        ("#add.1", "#sum.0"),
    } <= found


@pytest.mark.parametrize("frontend", ["export", "record-fake"])
def test_a_tensor_has_a_gradient_once_one_is_written_to_it(load: Load, frontend: str) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(8, 8)
        def forward(self, x):
            y = self.lin(x)
            z, rest = torch.zeros_like(y), torch.zeros_like(x)
            z[:, :4] = y[:, :4]
            rest[:, :4] = x[:, :4]
            return torch.sin(z) + torch.cos(rest)
    """
    graph = capture(load(text, name="Net", inputs=("4x8",)), frontends=[frontend]).graph
    assert graph["#sin.0"].inputs[0].requires_grad
    assert not graph["#cos.0"].inputs[0].requires_grad
    assert not graph["lin"].inputs[0].requires_grad


def test_buffers_and_constants_as_sources(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))
            self.register_buffer("shift", torch.ones(4))

        def forward(self, x):
            return x * self.scale + self.shift - torch.arange(4.0)
    """
    graph = graph_of(load, text, "2x4")
    assert [param.name for param in graph["#mul.0"].params] == ["scale"]
    assert graph["#mul.0"].sources == (INPUT,)
    assert graph["#add.0"].sources == ("#mul.0", "shift")
    assert graph["#sub.0"].sources == ("#add.0", "")


SOURCE = """
def squash(x):
    return torch.exp(x) / torch.exp(x.abs())


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        naïve = "ü"; y = torch.softmax(self.fc(x), -1)
        z = (
            y
            .softmax(-1)
        )
        return squash(torch.softmax(z, -1)) + naïve.count("x")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x
"""


def test_functional_ops_point_at_their_source(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(SOURCE, header="import torch\nfrom torch import nn\n")
    monkeypatch.chdir(path.parent)
    graph = capture(load_target(TargetSpec("model.py:Net", {}, ("2x4",)))).graph
    lines = path.read_text().splitlines()
    for block in ("blocks.0", "blocks.1"):
        spans = {}
        for number in range(3):
            site = graph[f"{block}#softmax.{number}"]
            assert site.code == f"Block.forward#softmax.{number}"
            assert site.location is not None
            assert site.location.path == "model.py"
            spans[number] = site.location
        first = spans[0]
        assert lines[first.line - 1][first.column - 1 : first.end_column - 1] == "torch.softmax(self.fc(x), -1)"
        assert lines[spans[1].end_line - 1].strip() == ".softmax(-1)"
        assert graph[f"{block}#exp.1"].code == "squash#exp.1"
    fc = graph["blocks.1.fc"].location
    assert fc is not None
    assert lines[fc.line - 1][fc.column - 1 : fc.end_column - 1] == "self.fc(x)"
    assert graph["blocks.0.fc"].code == ""


BUILT = """
def block(width):
    return nn.Sequential(
        nn.Linear(width, width),
        nn.ReLU(),
    )


class Own(nn.Linear):
    def __init__(self, width):
        super().__init__(width, width)


def make_model():
    return nn.Sequential(block(4), copy.deepcopy(block(4)), Own(4))


ready = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2)
"""


def test_layers_that_no_line_calls_point_at_where_they_are_built(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(BUILT, header="import copy\nimport torch\nfrom torch import nn\n")
    monkeypatch.chdir(path.parent)
    lines = path.read_text().splitlines()

    def built(model: str) -> dict[str, str]:
        graph = capture(load_target(TargetSpec(f"model.py:{model}", {}, ("2x3x4",)))).graph
        assert all(site.location is not None for site in graph)
        return {site.id: lines[site.location.line - 1].strip() for site in graph if site.location}

    found = built("make_model")
    assert found["0.0"] == found["1.0"] == "nn.Linear(width, width),"
    assert found["2"] == "return nn.Sequential(block(4), copy.deepcopy(block(4)), Own(4))"
    assert set(built("ready").values()) == {lines[-1]}


HELPER = """
import torch
from torch import nn
import torch.nn.functional as F


def project(x, weight):
    return F.linear(x, weight)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(32, 16))
        self.down = nn.Parameter(torch.randn(16, 32))

    def forward(self, x):
        return project(project(x, self.up).relu(), self.down) + project(x, self.up[:16])
"""


def test_a_line_of_a_helper_has_the_weights_of_all_its_calls(load: Load) -> None:
    """Each once: of the experts of a mixture, the second product's had no gradient and no moments in the estimate."""
    site = graph_of(load, HELPER, "4x16")["#linear.0"]
    assert site.calls == 3
    assert [param.name for param in site.params] == ["up", "down"]
    assert [gemm.k for gemm in site.gemms] == [16, 32, 16]
    assert site.attrs["call_params"] == 1


def test_calls_of_one_line_in_a_loop_are_one_site(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def forward(self, x):
            for _ in range(3):
                x = torch.tanh(x) @ x
            return x
    """
    graph = graph_of(load, text, "4x4")
    assert [(site.id, site.calls) for site in graph] == [("#tanh.0", 3), ("#matmul.0", 3)]
    assert graph["#matmul.0"].flops == 3 * 2 * 4 * 4 * 4


def test_model_of_a_package_points_into_the_package(load: Load) -> None:
    text = """
    from transformers import GPT2Config, GPT2Model
    def make_model(): return GPT2Model(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, n_positions=16))
    def make_batch(): return torch.zeros(2, 8, dtype=torch.int64)
    """
    graph = capture(load(text)).graph
    site = graph["h.0.attn.c_attn#addmm.0"]
    assert site.location is not None
    assert site.location.path.endswith("transformers/pytorch_utils.py")
    assert site.gemms == (Gemm(m=16, n=48, k=16),)
    attention = graph["h.0.attn#scaled_dot_product_attention.0"]
    assert attention.attrs["is_causal"] is True
    assert attention.flops == 2 * (2 * 2 * 2 * 8 * 8 * 8)


def test_vocabulary_projections_keep_their_misaligned_width(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(16, 257)

        def forward(self, x):
            return self.head(x)
    """
    assert graph_of(load, text, "3x5x16")["head"].gemms == (Gemm(m=15, n=257, k=16),)


def test_parameters_set_in_a_forward_are_captured(load: Load) -> None:
    """The moving average of a momentum encoder: ``slow.data = slow.data * m + fast.data * (1 - m)``."""
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fast, self.slow = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            with torch.no_grad():
                for fast, slow in zip(self.fast.parameters(), self.slow.parameters()):
                    slow.data = slow.data * 0.9 + fast.data * 0.1
            return self.fast(x) * self.slow(x)
    """
    assert {"fast", "slow"} <= {site.id for site in graph_of(load, text, "4x8")}


@pytest.mark.parametrize("layer", ["nn.Conv2d(3, 8, 3)", "nn.Linear(6, 8)", "nn.ConvTranspose2d(3, 8, 3)"])
def test_vectors_that_spectral_norm_keeps_from_call_to_call_are_no_output_of_its_layer(load: Load, layer: str) -> None:
    text = f"""
    from torch.nn.utils.parametrizations import spectral_norm

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.critic = spectral_norm({layer})

        def forward(self, x):
            return self.critic(x).mean() - self.critic(-x).mean()
    """
    graph = graph_of(load, text, "2x3x6x6")
    assert [meta.shape[0] for meta in graph["critic"].outputs] == [2]
