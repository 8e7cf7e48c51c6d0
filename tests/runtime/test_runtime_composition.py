"""A planned model under torch.compile, DDP, FSDP, and in the hands of the usual training code."""

import copy
import subprocess
import symtable
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amptune import runtime
from amptune.runtime import apply_plan, fp32, undo_plan


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.gate = nn.Softmax(-1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 11)

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.embed(tokens)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        scores = fp32(F.softmax)(q @ k.transpose(-1, -2) / 8**0.5, -1)
        x = x + scores @ v
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return {"logits": self.head(self.gate(x))}


class Convolves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 2, 2)
        self.norm = nn.GroupNorm(1, 2)
        self.fc = nn.Linear(2 * 4 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        return self.fc(self.norm(self.up(x)).flatten(1))


TOKENS = torch.arange(12).reshape(2, 6) % 11
PLAN = {"**": "bf16", "norm": "fp32", "gate": "fp32", "head": {"format": "bf16", "pad": 16}}


def _train(model: nn.Module, steps: int = 6) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, fused=True)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(TOKENS)["logits"].flatten(0, 1).float(), TOKENS.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.usefixtures("fresh_compiler")
def test_a_planned_model_compiles_in_one_graph_and_trains_the_same() -> None:
    model = Attends()
    apply_plan(model, PLAN, output_format="fp32")
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert _train(compiled) == pytest.approx(_train(eager), rel=2e-2)
    assert compiled(TOKENS)["logits"].dtype == torch.float32


@pytest.mark.usefixtures("fresh_compiler")
def test_convolutions_compile_in_one_graph() -> None:
    model = Convolves()
    apply_plan(model, {"**": "bf16", "bn": "fp32", "up": "fp16"}, channels_last=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(compiled(x), model(x), rtol=0.05, atol=0.05)
    compiled(x).float().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch.compile looks at it after a graph break
@pytest.mark.usefixtures("fresh_compiler")
def test_rnns_and_unknown_leaves_compile() -> None:
    class Leaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    model = nn.Sequential(Leaf(), nn.GRU(4, 4))
    apply_plan(model, {"**": "bf16"})
    x = torch.randn(3, 2, 4)
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(x)[0], model(x)[0], rtol=0.05, atol=0.02)


@pytest.mark.usefixtures("fresh_compiler")
def test_applying_another_plan_to_a_compiled_model_takes_effect() -> None:
    compiled = torch.compile(Attends(), backend="aot_eager")
    assert compiled(TOKENS)["logits"].dtype == torch.float32
    apply_plan(compiled, {"head": "bf16"})
    assert compiled(TOKENS)["logits"].dtype == torch.bfloat16
    undo_plan(compiled)
    assert compiled(TOKENS)["logits"].dtype == torch.float32


@pytest.mark.usefixtures("fresh_compiler")
def test_a_planned_model_exports() -> None:
    model = Attends()
    apply_plan(model, PLAN)
    program = torch.export.export(model, (TOKENS,))
    torch.testing.assert_close(program.module()(TOKENS)["logits"], model(TOKENS)["logits"], rtol=0.05, atol=0.02)


def test_no_weight_cast_is_kept_while_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[object] = []
    monkeypatch.setattr(runtime._Reuse, "apply", lambda *a: kept.append(a))
    model = nn.Sequential(nn.Linear(4, 4))
    model.append(model[0])
    apply_plan(model, {"0": "bf16"})
    torch._dynamo.reset()
    torch.compile(model, backend="aot_eager", fullgraph=True)(torch.ones(1, 4))
    assert kept == []


@pytest.mark.usefixtures("process_group")
def test_ddp_trains_a_planned_model_and_can_be_undone_through_it() -> None:
    model = Attends()
    alone = copy.deepcopy(model)
    apply_plan(model, PLAN)
    apply_plan(alone, PLAN)
    wrapped = nn.parallel.DistributedDataParallel(model)
    assert _train(wrapped) == pytest.approx(_train(alone), rel=1e-3)
    apply_plan(wrapped, {"head": "fp16"})
    assert wrapped(TOKENS)["logits"].dtype == torch.float16
    undo_plan(wrapped)
    assert type(model) is Attends


@pytest.mark.usefixtures("process_group")
def test_blocks_may_be_sharded_each_and_the_rest_of_the_model_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    monkeypatch.setattr(runtime, "_saves_launches", lambda weight: True)
    mesh = init_device_mesh("cpu", (1,))
    sharded = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)), nn.Linear(8, 4))
    alone = copy.deepcopy(sharded)
    losses: list[list[float]] = []
    for model in (sharded, alone):
        apply_plan(model, {"**": "bf16"})
        if model is sharded:
            fully_shard(model[1], mesh=mesh)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses.append([])
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.linspace(-1, 1, 32).view(4, 8)).float().pow(2).mean()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.usefixtures("process_group")
def test_a_planned_model_trains_under_fully_shard_and_is_refused_after_it() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    model = Attends()
    alone = copy.deepcopy(model)
    apply_plan(model, PLAN)
    apply_plan(alone, PLAN)
    fully_shard(model.head, mesh=mesh)
    fully_shard(model, mesh=mesh)
    sharded, expected = _train(model), _train(alone)
    assert sharded == pytest.approx(expected, rel=1e-2)
    assert sharded[-1] < sharded[0]
    with pytest.raises(RuntimeError, match="before fully_shard"):
        apply_plan(model, PLAN)
    with pytest.raises(RuntimeError, match="undo the plan before"):
        undo_plan(model)


def test_an_average_copy_of_a_planned_model_follows_it() -> None:
    model = Attends()
    apply_plan(model, PLAN)
    average = torch.optim.swa_utils.AveragedModel(model)
    _train(model, 2)
    average.update_parameters(model)
    assert torch.equal(average.module(TOKENS)["logits"], model(TOKENS)["logits"])


def test_frozen_layers_stay_frozen() -> None:
    model = Attends()
    model.qkv.requires_grad_(False)
    before = model.qkv.weight.clone()
    apply_plan(model, PLAN)
    _train(model, 2)
    assert model.qkv.weight.grad is None
    assert torch.equal(model.qkv.weight, before)


def test_parametrized_weights_are_read_anew() -> None:
    linear = nn.Linear(4, 4)
    apply_plan(linear, {"": "bf16"})
    nn.utils.parametrizations.weight_norm(linear)
    linear(torch.ones(2, 4)).float().sum().backward()
    assert all(p.grad is not None for p in linear.parameters())


def test_half_precision_parameters_are_taken_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).bfloat16()
    apply_plan(model, {"0": "bf16", "1": "fp32"})
    assert model(torch.ones(1, 4)).dtype == torch.float32
    model(torch.ones(1, 4)).sum().backward()
    assert model[0].weight.grad is not None
    assert model[0].weight.grad.dtype == torch.bfloat16


def test_moving_a_planned_model_keeps_the_plan() -> None:
    model = Convolves()
    apply_plan(model, {"**": "bf16"})
    model.to("meta")
    assert model(torch.empty(2, 3, 5, 5, device="meta")).dtype == torch.bfloat16


def test_scaler_steps_on_fp16_gradients_of_fp32_parameters() -> None:
    model = nn.Linear(4, 1)
    apply_plan(model, {"": "fp16"})
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.weight.clone()
    scaler.scale(model(torch.ones(2, 4)).float().sum() * 1e-6).backward()
    scaler.step(optimizer)
    scaler.update()
    # Without the scale 1e-6 / 2 would be rounded to a multiple of 6e-8 in fp16.
    torch.testing.assert_close(before - model.weight, torch.full((1, 4), 2e-7), rtol=0.05, atol=0)


def test_the_file_stands_alone(tmp_path: object) -> None:
    """Copied beside a model as amptune_runtime.py it works in a process that cannot import amptune."""
    from pathlib import Path

    folder = Path(str(tmp_path))
    (folder / "amptune_runtime.py").write_text(Path(runtime.__file__).read_text())
    script = """
        import sys
        sys.modules["amptune"] = None  # importing it raises
        import torch, amptune_runtime, pickle
        model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.GRU(5, 5))
        amptune_runtime.apply_plan(model, {"0": {"format": "bf16", "pad": 8}, "1": "bf16"})
        amptune_runtime.require(amptune_runtime.__version__)
        twin = pickle.loads(pickle.dumps(model))
        print(twin(torch.ones(1, 1, 4))[0].dtype)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)], cwd=folder, capture_output=True, text=True
    )
    assert done.stdout.strip() == "torch.bfloat16", done.stderr


def test_only_functions_name_super() -> None:
    """Where a line of the file itself does, Python 3.12 compiles every ``super()`` in it to calls that torch.compile
    does not follow: planned embeddings and batch norms could not be compiled."""
    source = Path(runtime.__file__).read_text(encoding="utf-8")
    assert "super" not in symtable.symtable(source, "runtime.py", "exec").get_identifiers()
