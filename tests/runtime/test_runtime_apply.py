"""The table of apply_plan: globs, precedence, errors; undo, bit for bit; output format, channels_last, flags."""

import collections
import copy
import dataclasses
import io
import operator
import pickle
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amptune import runtime
from amptune.runtime import AppliedPlan, apply_plan, match_paths, set_backend_flags, undo_plan


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.fc1 = nn.Linear(8, 13)
        self.fc2 = nn.Linear(13, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.softmax = nn.Softmax(-1)
        self.head = nn.Linear(8, 7)

    def forward(self, tokens: torch.Tensor) -> dict[str, Any]:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        x = self.attention(x, x, x)[0]
        x = self.conv(x.reshape(1, -1, x.shape[-2], 8)).reshape(-1, x.shape[-2], 8)
        return {"logits": self.softmax(self.head(x)), "hidden": [x], "tokens": tokens}


TOKENS = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 0, 1], [2, 3, 4]])
EVERYTHING = {"**": "bf16", "head": {"format": "fp16", "pad": 8}, "softmax": "fp32"}


def _formats(applied: AppliedPlan) -> dict[str, str]:
    return {path: site.format for path, site in applied.sites.items()}


# --- the table


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("blocks.*.fc1", ["blocks.0.fc1", "blocks.10.fc1"]),
        ("blocks.*", ["blocks.0", "blocks.10"]),
        ("**.fc1", ["blocks.0.fc1", "blocks.10.fc1", "fc1"]),
        ("blocks.[0-9].fc1", ["blocks.0.fc1"]),
        ("blocks.1?.fc1", ["blocks.10.fc1"]),
        ("*", ["fc1"]),
        ("blocks.**", ["blocks.0", "blocks.0.fc1", "blocks.10", "blocks.10.fc1"]),
    ],
)
def test_globs_match_whole_parts(pattern: str, matched: list[str]) -> None:
    paths = ["blocks.0", "blocks.0.fc1", "blocks.10", "blocks.10.fc1", "fc1"]
    assert match_paths(pattern, paths) == matched


@pytest.mark.parametrize("reverse", [False, True])
def test_exact_path_beats_glob_and_longer_glob_beats_shorter(reverse: bool) -> None:
    table = {"blocks.*.fc1": "bf16", "**": "fp32", "blocks.1.fc1": "fp16", "blocks.0.*": "fp16"}
    sites = dict(reversed(table.items())) if reverse else table
    formats = _formats(apply_plan(Net(), sites))
    assert formats["blocks.1.fc1"] == "fp16"
    assert formats["blocks.0.fc1"] == "bf16"
    assert formats["blocks.0.fc2"] == "fp16"
    assert formats["blocks.1.fc2"] == "fp32"
    assert "blocks.0" not in formats
    assert "attention.out_proj" not in formats


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ({"blocks.0.fc3": "bf16"}, "'blocks.0.fc3', which the model does not have; did you mean 'blocks.0.fc"),
        ({"layers.*.fc1": "bf16"}, r"'layers\.\*\.fc1'"),
        ({"head": "bf17"}, "format 'bf17' is not one of fp32, bf16, fp16, fp8_e4m3; did you mean 'bf16'"),
        ({"head": "tf32"}, "format 'tf32' is not one of"),
        ({"head": "fp8_e4m3"}, "fp8_e4m3 needs a scaling"),
        ({"head": {"pad": 8}}, "the key 'format' is missing"),
        ({"head": {"format": "bf16", "padding": 8}}, "key 'padding' is not one of .*did you mean 'pad_in'"),
        ({"head": {"format": "bf16", "how": "magic"}}, "how 'magic' is not one of swap"),
        ({"blocks.0": "bf16"}, r"'blocks.0' \(Block\) takes no format itself"),
        ({"attention.out_proj": "bf16"}, "'attention' computes with it without calling it.*: name that"),
        ({"attention.out_proj": {"format": "bf16", "how": "autocast"}}, "'attention' computes with it"),
        ({"attention": {"format": "bf16", "how": "swap"}}, "cannot be swapped"),
    ],
)
def test_what_does_not_fit_is_named_and_leaves_the_model_alone(sites: dict[str, Any], message: str) -> None:
    model = Net()
    with pytest.raises(ValueError, match=message):
        apply_plan(model, sites)
    assert type(model) is Net
    assert type(model.head) is nn.Linear


def test_a_wrong_output_format_is_named() -> None:
    with pytest.raises(ValueError, match="output format 'fp64'"):
        apply_plan(Net(), {}, output_format="fp64")


def test_sites_that_follow_or_are_pinned_in_the_source_are_left_alone() -> None:
    model = Net()
    applied = apply_plan(
        model, {"softmax": {"format": "bf16", "how": "follow"}, "head": {"format": "fp32", "how": "source"}}
    )
    assert applied.sites == {}
    assert type(model.softmax) is nn.Softmax


def test_a_shared_module_takes_one_format() -> None:
    model = Net()
    model.second_head = model.head
    assert _formats(apply_plan(model, {"head": "bf16"})) == {"head": "bf16"}
    assert apply_plan(model, {"head": "bf16", "second_head": "bf16"}).sites["second_head"].format == "bf16"
    assert type(model.head) is runtime.PlannedLinear
    with pytest.raises(ValueError, match="'head' and 'second_head' are one module"):
        apply_plan(model, {"head": "bf16", "second_head": "fp16"})


def test_a_replaced_forward_is_refused() -> None:
    model = Net()
    model.head.forward = lambda x: x
    with pytest.raises(ValueError, match=r"'head' .* replaced on the instance"):
        apply_plan(model, {"head": "bf16"})


def test_torchscript_is_refused() -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        scripted = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(ValueError, match="takes no format itself; it is TorchScript"):
        apply_plan(nn.Sequential(scripted), {"0": "bf16"})


def test_a_glob_of_regions_leaves_out_what_is_never_called() -> None:
    applied = apply_plan(Net(), {"attention**": {"format": "bf16", "how": "autocast"}})
    assert set(applied.sites) == {"attention"}


# --- undo


def _everything(model: nn.Module) -> dict[str, Any]:
    """All that undo must give back. Containers are copied, tensors are kept as they are."""

    def frozen(value: Any) -> Any:
        return type(value)(value) if isinstance(value, dict | set) else value

    return {
        name: (type(module), list(module.__dict__), {k: frozen(v) for k, v in module.__dict__.items()})
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("channels_last", [False, True])
def test_undo_gives_everything_back(channels_last: bool) -> None:
    model = Net()
    handle = model.head.register_forward_hook(lambda *_: None)
    expected = model(TOKENS)["logits"]
    before = _everything(model)
    strides = {name: value.stride() for name, value in model.state_dict().items()}
    values = {name: value.clone() for name, value in model.state_dict().items()}
    flags = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)

    applied = apply_plan(model, EVERYTHING, channels_last=channels_last, output_format="fp32")
    assert (model.conv.weight.stride() != strides["conv.weight"]) == channels_last
    model(TOKENS)
    applied.undo()

    after = _everything(model)
    assert before.keys() == after.keys()
    for name in before:
        assert before[name] == after[name], name
    assert {name: value.stride() for name, value in model.state_dict().items()} == strides
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == flags
    assert torch.equal(model(TOKENS)["logits"], expected)
    handle.remove()
    applied.undo()  # twice is once
    assert type(model) is Net


def test_undo_restores_strides_of_gradients_too() -> None:
    model = Net()
    applied = apply_plan(model, {}, channels_last=True)
    model(TOKENS)["logits"].sum().backward()
    assert model.conv.weight.grad is not None
    model.conv.weight.grad = model.conv.weight.grad.contiguous(memory_format=torch.channels_last)
    applied.undo()
    assert model.conv.weight.grad.is_contiguous()


def test_what_was_learned_survives_undo() -> None:
    model = Net()
    applied = apply_plan(model, EVERYTHING, channels_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(TOKENS)["logits"].float()[..., 0].sum().backward()
    optimizer.step()
    learned = {name: value.clone() for name, value in model.state_dict().items()}
    applied.undo()
    assert all(torch.equal(value, learned[name]) for name, value in model.state_dict().items())


def test_applying_again_replaces_the_plan() -> None:
    model = Net()
    apply_plan(model, EVERYTHING, channels_last=True, output_format="fp32")
    once = apply_plan(model, {"head": "bf16"})
    output = model(TOKENS)
    assert output["logits"].dtype == torch.bfloat16
    assert type(model.conv) is nn.Conv2d
    assert model.conv.weight.is_contiguous()
    again = apply_plan(model, {"head": "bf16"})
    assert torch.equal(model(TOKENS)["logits"], output["logits"])
    assert once.sites == again.sites
    again.undo()
    assert type(model) is Net


def test_weights_of_one_by_one_have_the_strides_of_channels_last() -> None:
    """As Module.to gives them, by which torch knows the layout where the image is 1 x 1 as well."""
    conv = nn.Conv2d(8, 4, 1)
    expected = nn.Conv2d(8, 4, 1).to(memory_format=torch.channels_last).weight.stride()
    assert conv.weight.stride() != expected
    applied = apply_plan(conv, {}, channels_last=True)
    assert conv.weight.stride() == expected
    applied.undo()
    assert conv.weight.stride() == nn.Conv2d(8, 4, 1).weight.stride()


def test_a_memory_format_set_later_leaves_channels_last_in_force() -> None:
    model = Net()
    apply_plan(model, EVERYTHING, channels_last=True)
    assert model.to(memory_format=torch.contiguous_format) is model
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert nn.Sequential(model).double()[0].conv.weight.dtype == torch.float64


def test_other_layouts_of_weights_come_back() -> None:
    conv = nn.Conv3d(2, 3, 2)
    conv.weight.data = conv.weight.data.transpose(0, 2).contiguous().transpose(0, 2)
    stride = conv.weight.stride()
    applied = apply_plan(conv, {}, channels_last=True)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
    applied.undo()
    assert conv.weight.stride() == stride


# --- lazy layers


def lazy() -> nn.Sequential:
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3))


def test_a_plan_waits_for_the_parameters_of_lazy_layers() -> None:
    model, x = lazy(), torch.randn(2, 5)
    apply_plan(model, {"0": "bf16", "2": "bf16"}, output_format="bf16")
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for twin in (model, *copies):
        assert twin(x).dtype == torch.float32, "the first forward is that of the user's model"
        assert twin(x).dtype == torch.bfloat16
        assert isinstance(twin[0], runtime.PlannedLinear)
        undo_plan(twin)
        assert twin(x).dtype == torch.float32
        assert type(twin[0]) is nn.Linear


def test_a_plan_that_waits_can_be_undone_or_replaced() -> None:
    model, x = lazy(), torch.randn(2, 5)
    apply_plan(model, {"0": "fp16", "2": "fp16"}, output_format="fp16").undo()
    apply_plan(model, {"0": "fp16", "2": "fp16"}, output_format="fp16")
    apply_plan(model, {"0": "bf16", "2": "bf16"}, output_format="bf16")
    model(x)
    assert model(x).dtype == torch.bfloat16


# --- copies


def test_deepcopy_and_pickle_keep_the_plan_and_can_be_undone() -> None:
    model = Net()
    plain = model(TOKENS)["logits"]
    apply_plan(model, EVERYTHING, channels_last=True, output_format="fp32")
    expected = model(TOKENS)["logits"]
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(stream, weights_only=False),
        copy.copy(model),
    ]
    for twin in copies:
        assert torch.equal(twin(TOKENS)["logits"], expected)
    for twin in copies[:3]:
        undo_plan(twin)
        assert type(twin) is Net
        assert torch.equal(twin(TOKENS)["logits"], plain)
    assert torch.equal(model(TOKENS)["logits"], expected)


def test_a_planned_root_that_is_a_leaf_pickles_too() -> None:
    for module, x in ((nn.Linear(4, 4), torch.ones(1, 4)), (nn.GRU(4, 4), torch.ones(1, 1, 4))):
        apply_plan(module, {"": "bf16"})
        twin = pickle.loads(pickle.dumps(module))
        assert torch.equal(twin(x)[0], module(x)[0])
        undo_plan(twin)
        assert type(twin).__name__ in ("Linear", "GRU")


def test_a_planned_model_keeps_its_class_name_and_signature() -> None:
    import inspect

    model = Net()
    before = inspect.signature(model.forward)
    apply_plan(model, EVERYTHING)
    assert isinstance(model, Net)
    assert type(model).__name__ == "Net"
    assert type(model).__module__ == Net.__module__
    assert inspect.signature(model.forward) == before


def test_registries_of_the_users_do_not_hear_of_our_classes() -> None:
    class Registered(nn.Linear):
        names: list[str] = []

        def __init_subclass__(cls, *, name: str) -> None:
            cls.names.append(name)

    model = Registered(2, 2)
    apply_plan(model, {"": "bf16"})
    assert model(torch.ones(1, 2)).dtype == torch.bfloat16
    assert Registered.names == []


# --- output format


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    states: tuple[torch.Tensor, ...]
    name: str


Pair = collections.namedtuple("Pair", ["first", "second"])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, [x, "text"]),
        lambda x: Pair(x, x),
        lambda x: {"a": x, "b": {"c": (x,)}},
        lambda x: collections.OrderedDict(a=x, b=[x]),
        lambda x: Output(x, (x, x), "name"),
        lambda x: types.SimpleNamespace(untouched=x.float()),
    ],
)
def test_output_format_reaches_every_tensor_and_keeps_types(wrap: Any) -> None:
    class Wraps(nn.Linear):
        def forward(self, input: torch.Tensor) -> Any:
            return wrap(super().forward(input))

    model = Wraps(4, 4)
    expected = model(torch.ones(1, 4))
    apply_plan(model, {"": "bf16"}, output_format="fp32")
    output = model(torch.ones(1, 4))
    assert type(output) is type(expected)
    assert _dtypes(output) <= {torch.float32}


def _dtypes(value: Any) -> set[torch.dtype]:
    if isinstance(value, torch.Tensor):
        return {value.dtype}
    if isinstance(value, dict):
        return set().union(*map(_dtypes, value.values()))
    if isinstance(value, tuple | list):
        return set().union(*map(_dtypes, value))
    return _dtypes(vars(value)) if hasattr(value, "__dict__") else set()


def test_model_outputs_of_transformers_keep_their_type() -> None:
    from transformers.modeling_outputs import CausalLMOutput

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> CausalLMOutput:
            return CausalLMOutput(logits=self.fc(x), hidden_states=(x,))

    model = Model()
    apply_plan(model, {"fc": "bf16"}, output_format="fp32")
    output = model(torch.ones(1, 4).bfloat16())
    assert isinstance(output, CausalLMOutput)
    assert output.logits is not None
    assert output.logits.dtype == output["logits"].dtype == torch.float32
    assert output.hidden_states is not None
    assert output.hidden_states[0].dtype == torch.float32
    assert output.loss is None
    assert len(output) == 2


def test_integer_outputs_are_left_alone_and_numpy_works() -> None:
    model = Net()
    apply_plan(model, EVERYTHING, output_format="fp32")
    output = model(TOKENS)
    assert output["tokens"] is TOKENS
    output["logits"].detach().numpy()
    apply_plan(model, EVERYTHING)
    assert model(TOKENS)["logits"].dtype == torch.float16


# --- process-wide


def test_backend_flags_are_set_and_restored() -> None:
    before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    restore = set_backend_flags(tf32=True)
    try:
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
        restore_inner = set_backend_flags(tf32=False)
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
        restore_inner()
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        restore()
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize(
    ("backend", "precision"),
    [
        ("", "tf32"),  # what a Trainer of transformers with tf32=True sets, and with tf32=False the next one
        ("", "ieee"),
        (".cuda.matmul", "tf32"),
        (".cudnn.conv", "ieee"),
    ],
)
def test_backend_flags_are_set_and_restored_where_the_user_set_the_newer_ones(backend: str, precision: str) -> None:
    nodes = [operator.attrgetter(name)(torch.backends) for name in ("cuda.matmul", "cudnn.conv", "cudnn.rnn")]
    whole = operator.attrgetter(backend[1:])(torch.backends) if backend else torch.backends
    older = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    newer = whole.fp32_precision
    try:
        whole.fp32_precision = precision
        before = [node.fp32_precision for node in nodes]
        restore = set_backend_flags(tf32=False)
        assert [node.fp32_precision for node in nodes] == ["ieee"] * 3
        assert not torch.backends.cudnn.allow_tf32
        restore_inner = set_backend_flags(tf32=True)
        assert [node.fp32_precision for node in nodes] == ["tf32"] * 3
        assert torch.get_float32_matmul_precision() == "high"
        restore_inner()
        assert [node.fp32_precision for node in nodes] == ["ieee"] * 3
        restore()
        assert [node.fp32_precision for node in nodes] == before
    finally:
        whole.fp32_precision = newer
        torch.set_float32_matmul_precision(older[0])
        torch.backends.cudnn.allow_tf32 = older[1]


def test_applying_a_plan_leaves_the_flags_alone() -> None:
    torch.backends.cudnn.allow_tf32 = True
    apply_plan(Net(), EVERYTHING)
    assert torch.backends.cudnn.allow_tf32


def test_require_names_both_versions() -> None:
    runtime.require(runtime.__version__)
    with pytest.raises(RuntimeError, match=f"99.0.0.*{runtime.__version__}"):
        runtime.require("99.0.0")


def test_a_glob_does_not_reach_the_model_itself() -> None:
    applied = apply_plan(Net(), {"*": {"format": "bf16", "how": "autocast"}})
    assert "" not in applied.sites
    assert apply_plan(nn.Linear(2, 2), {"": "bf16"}).sites[""].format == "bf16"


def test_a_glob_that_ends_in_a_wildcard_means_modules_with_parameters() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "gate": nn.Softmax(-1)})
    outer = nn.ModuleDict({"block": model})
    assert list(apply_plan(outer, {"**": "fp32"}).sites) == ["block.a"]
    assert list(apply_plan(outer, {"*.gate": "fp32"}).sites) == ["block.gate"]
    with pytest.raises(ValueError, match="block"):
        apply_plan(outer, {"block.g*": "fp32"})


def test_a_plan_that_does_not_fit_leaves_the_one_in_force() -> None:
    model = Net()
    apply_plan(model, EVERYTHING)
    expected = model(TOKENS)["logits"]
    with pytest.raises(ValueError, match=r"blocks\.7"):
        apply_plan(model, {"head": "bf16", "blocks.7.fc1": "bf16"})
    with pytest.raises(ValueError, match=r"'embed' \(Embedding\)"):
        apply_plan(model, {"embed": {"format": "bf16", "pad": 8}})
    assert torch.equal(model(TOKENS)["logits"], expected)


def test_backend_flags_after_the_newer_setting_of_torch_was_used() -> None:
    """It makes the older getter raise."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        restore = set_backend_flags(tf32=False)
        assert torch.get_float32_matmul_precision() == "highest"
        restore()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


class _OwnLoss(nn.Module):
    """Makes its loss itself, as models of transformers do, and hands it over in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.fc(x)
        return {"loss": logits.pow(2).mean() + 10, "logits": logits}


def test_a_loss_that_the_model_makes_in_fp16_comes_back_in_fp32() -> None:
    model = _OwnLoss()
    apply_plan(model, {"fc": "fp16"})
    output = model(torch.randn(4, 8))
    assert output["loss"].dtype == torch.float32
    assert output["logits"].dtype == torch.float16
    scaled = torch.amp.GradScaler("cpu", init_scale=2.0**15).scale(output["loss"])
    scaled.backward()
    assert scaled.isfinite()
    assert model.fc.weight.grad is not None
    assert model.fc.weight.grad.isfinite().all()
