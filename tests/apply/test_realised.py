"""check_realised: silent when the plan is in force, and not otherwise. Each broken application here must be caught."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amptune import runtime
from amptune.apply import apply, check_realised, how_to_apply, stale_weight_casts
from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan

BF16, FP16, FP32 = Format.BF16, Format.FP16, Format.FP32


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 12)
        self.out = nn.Linear(12, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.rnn = nn.GRU(8, 8, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.gate = nn.Softmax(-1)
        self.head = nn.Linear(8, 7)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embed(tokens))
        x = x + self.out(F.gelu(self.fc(x)))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.encoder(self.rnn(x)[0])
        return self.head(self.gate(x))


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.up(self.bn(self.conv(x)).relu()).mean((2, 3)))


TOKENS = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 0]])


def _run(model: nn.Module, batch: torch.Tensor = TOKENS) -> Callable[[], None]:
    def forward_and_backward() -> None:
        model(batch).float().pow(2).sum().backward()

    return forward_and_backward


def _forward(model: nn.Module) -> Callable[[], None]:
    def forward() -> None:
        model(torch.ones(2, 4))

    return forward


def _plan(**formats: Format) -> Plan:
    how = {"attention": "autocast", "rnn": "autocast", "encoder": "autocast"}
    return Plan({name: SitePlan(item, how=how.get(name, "swap")) for name, item in formats.items()})  # type: ignore[arg-type]


def _all(low: Format) -> Plan:
    names = ("embed", "norm", "fc", "out", "attention", "rnn", "encoder", "head")
    return _plan(**dict.fromkeys(names, low), gate=FP32)


@pytest.mark.parametrize("number_format", [BF16, FP32])
@pytest.mark.parametrize("training", [True, False])
def test_a_plan_in_force_has_no_mismatch(number_format: Format, training: bool) -> None:
    model = Net().train(training)
    plan = _all(number_format)
    apply(model, plan)
    assert check_realised(model, _run(model), plan) == []
    assert model.training is training
    assert model.fc.training is training


def test_a_mixed_plan_in_force_has_no_mismatch() -> None:
    model = Net()
    plan = _plan(embed=FP32, norm=FP16, fc=BF16, out=FP16, attention=BF16, rnn=FP32, head=FP16)
    apply(model, plan)
    assert check_realised(model, _run(model), plan) == []


def test_convolutions_and_batch_norm_in_force() -> None:
    model = ConvNet()
    plan = _plan(conv=BF16, bn=FP32, up=BF16, fc=BF16)
    apply(model, plan)
    assert check_realised(model, _run(model, torch.randn(2, 3, 5, 5)), plan) == []


def test_padding_and_shared_layers_in_force() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(13, 8)
            self.fc = nn.Linear(8, 8)
            self.again = self.fc
            self.head = nn.Linear(8, 13, bias=False)
            self.head.weight = self.table.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.again(self.fc(self.table(tokens))))

    model = Shared()
    plan = Plan({"table": SitePlan(BF16), "fc": SitePlan(BF16), "head": SitePlan(BF16, pad=16)})
    apply(model, plan)
    assert check_realised(model, _run(model), plan) == []


@pytest.mark.parametrize("scaling", ["tensorwise", "rowwise", "rowwise_gw_hp"])
def test_fp8_layers_in_force_and_not_in_force(scaling: str) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 12))

    plan = Plan(
        {
            "0": SitePlan(Format.FP8_E4M3, scaling=scaling),
            "1": SitePlan(Format.FP8_E4M3, scaling=scaling, pad=16),
        }
    )
    model, x = make(), torch.randn(8, 16)
    apply(model, plan)
    assert check_realised(model, _run(model, x), plan) == []
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        _run(model, x)()
        optimizer.step()

    assert stale_weight_casts(model, step, _run(model, x), plan) == []
    for other in {"bf16", *(f"fp8_e4m3:{name}" for name in runtime.SCALINGS)} - {f"fp8_e4m3:{scaling}"}:
        model = make()
        runtime.apply_plan(model, {"0": other, "1": {"format": "fp8_e4m3", "scaling": scaling, "pad": 16}})
        found = _found(model, plan, x)
        assert found
        assert all(text.startswith("0: planned fp8_e4m3, but in the ") for text in found)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_layers_in_force(use_reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.out = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(checkpoint(self.fc, x, use_reentrant=use_reentrant))

    model = Checkpointed()
    plan = _plan(fc=BF16, out=FP16)
    apply(model, plan)
    assert check_realised(model, _run(model, torch.ones(2, 4, requires_grad=True)), plan) == []


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize(("norm", "out"), [(FP32, BF16), (BF16, FP32)])
def test_what_a_checkpointed_method_multiplies_itself_is_no_work_of_a_layer(
    use_reentrant: bool, norm: Format, out: Format
) -> None:
    """It is computed again when the backward of ``out`` asks for what was saved, outside of every forward."""
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.out = nn.LayerNorm(4), nn.Linear(4, 4)
            self.weight = nn.Parameter(torch.ones(4, 4))

        def inner(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.tanh(self.norm(x) @ self.weight))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.inner, x, use_reentrant=use_reentrant)

    model = Checkpointed()
    plan = Plan({"norm": SitePlan(norm), "out": SitePlan(out), "weight": SitePlan(norm, how="own")})
    apply(model, plan)
    assert check_realised(model, _run(model, torch.rand(2, 4, requires_grad=True)), plan) == []


def test_what_torchs_own_code_computes_is_not_the_users_line() -> None:
    """The entropy of a distribution sums too, in the format of what it is given."""

    class Acts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.actor = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = self.actor(x)
            return torch.distributions.Categorical(logits=logits).entropy() + logits.float().sum(-1)

    model, x = Acts(), torch.rand(2, 4, requires_grad=True)
    plan = Plan({"actor": SitePlan(BF16), "#sum.0": SitePlan(FP32, how="source")})
    apply(model, plan)
    assert check_realised(model, _run(model, x), plan) == []
    plan = Plan({"actor": SitePlan(BF16), "#sum.0": SitePlan(BF16, how="follow")})
    assert _found(model, plan, x) == ["#sum: planned bf16, but in the forward sum computes in float32"]


def _found(model: nn.Module, plan: Plan, batch: torch.Tensor = TOKENS) -> list[str]:
    return [str(mismatch) for mismatch in check_realised(model, _run(model, batch), plan)]


def test_a_plan_that_was_not_applied_is_found_in_forward_backward_and_eval() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    x = torch.ones(2, 4, requires_grad=True)
    found = _found(model, Plan({"0": SitePlan(BF16)}), x)
    assert "0: planned bf16, but in the forward addmm multiplies float32" in found
    assert "0: planned bf16, but in the backward mm multiplies float32" in found
    assert "0: planned bf16, but in the eval its output is float32" in found


def test_the_previous_plan_still_in_force_is_found() -> None:
    model = Net()
    apply(model, _plan(fc=BF16, out=BF16))
    found = _found(model, _plan(fc=BF16, out=FP16))
    assert found
    assert all(text.startswith("out: planned fp16") for text in found)


def test_a_layer_that_an_outer_autocast_lowers_is_found() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    plan = Plan({"0": SitePlan(FP32)})

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            model(torch.ones(2, 4)).sum().backward()

    found = [str(mismatch) for mismatch in check_realised(model, run, plan)]
    assert "0: planned fp32, but in the forward addmm multiplies bfloat16" in found


def _broken_forward(cast: Callable[[Any], torch.Tensor]) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    def forward(self: Any, input: torch.Tensor) -> torch.Tensor:
        dtype = self._amptune.dtype
        return F.linear(input.to(dtype), cast(self), self.bias.to(dtype))

    return forward


def test_a_cast_without_a_graph_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    casts: dict[int, torch.Tensor] = {}

    def cast(module: Any) -> torch.Tensor:
        # Keyed by the version, which fused optimizers do not raise.
        return casts.setdefault(module.weight._version, module.weight.to(module._amptune.dtype).detach())

    monkeypatch.setattr(runtime.PlannedLinear, "forward", _broken_forward(cast))
    model = nn.Sequential(nn.Linear(4, 4))
    plan = Plan({"0": SitePlan(BF16)})
    apply(model, plan)
    found = _found(model, plan, torch.ones(2, 4))
    assert "0: planned bf16, but in the backward its weight gets no gradient" in found


def test_a_cast_kept_over_the_optimizer_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    casts: dict[int, torch.Tensor] = {}

    def cast(module: Any) -> torch.Tensor:
        key = module.weight._version
        if key not in casts:
            casts[key] = module.weight.to(module._amptune.dtype)
        return casts[key]

    monkeypatch.setattr(runtime.PlannedLinear, "forward", _broken_forward(cast))
    model = nn.Sequential(nn.Linear(4, 4))
    plan = Plan({"0": SitePlan(BF16)})
    apply(model, plan)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        model(torch.ones(2, 4)).sum().backward(retain_graph=True)
        optimizer.step()

    stale = stale_weight_casts(model, step, _forward(model), plan)
    assert [str(item) for item in stale] == [
        "0: planned bf16, but in the forward it computes with an old copy of its weight"
    ]
    # Within check_realised the eval forward is the second one.
    casts.clear()
    assert "0: planned bf16, but in the eval it computes with an old copy of its weight" in _found(
        model, plan, torch.ones(2, 4)
    )


def test_fresh_casts_are_not_called_stale() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    plan = Plan({"0": SitePlan(BF16), "1": SitePlan(BF16)})
    apply(model, plan)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()

    assert stale_weight_casts(model, step, _forward(model), plan) == []


def test_a_layer_frozen_by_a_cast_under_no_grad_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def cast(module: Any) -> torch.Tensor:
        with torch.no_grad():
            return module.weight.to(module._amptune.dtype)

    monkeypatch.setattr(runtime.PlannedLinear, "forward", _broken_forward(cast))
    model = Net()
    plan = _plan(fc=BF16, out=BF16)
    apply(model, plan)
    assert _found(model, plan) == [
        "fc: planned bf16, but in the backward its weight gets no gradient",
        "out: planned bf16, but in the backward its weight gets no gradient",
    ]


def test_a_module_under_the_users_own_no_grad_is_no_mismatch() -> None:
    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher, self.student = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                target = self.teacher(x)
            return self.student(x) - target

    model = Teacher()
    plan = _plan(teacher=BF16, student=BF16)
    apply(model, plan)
    assert _found(model, plan, torch.ones(2, 4)) == []


def test_a_module_that_is_not_used_is_no_mismatch() -> None:
    model = Net()
    model.spare = nn.Linear(4, 4)
    plan = _plan(spare=BF16, head=BF16)
    apply(model, plan)
    assert _found(model, plan) == []


def _force_swap(module: nn.Module, path: str, number_format: str) -> None:
    """Swap a class behind apply_plan's back, as a naive tool would."""
    child = module.get_submodule(path)
    child.__class__ = runtime.PlannedLinear
    child._amptune = runtime.Site(number_format, runtime.FORMATS[number_format])


def test_attention_that_bypasses_its_swapped_projection_is_found() -> None:
    model = Net()
    _force_swap(model, "attention.out_proj", "bf16")
    found = _found(model, Plan({"attention.out_proj": SitePlan(BF16)}))
    assert "attention.out_proj: planned bf16, but in the forward its weight is used without calling it" in found


def test_the_fast_path_of_the_transformer_layer_is_found_in_eval() -> None:
    model = Net()
    _force_swap(model, "encoder.linear1", "bf16")
    plan = Plan({"encoder.linear1": SitePlan(BF16), "encoder.linear2": SitePlan(BF16)})
    _force_swap(model, "encoder.linear2", "bf16")
    found = _found(model, plan)
    assert "encoder.linear1: planned bf16, but in the eval its weight is used without calling it" in found
    assert all("eval" in text for text in found)  # in train mode the layer calls its children
    # Applied properly, the fast path is off.
    model = Net()
    apply(model, plan)
    assert _found(model, plan) == []


def test_a_norm_that_answers_in_another_format_is_found() -> None:
    model = Net()
    apply(model, _plan(norm=FP32))
    assert "norm: planned bf16, but in the forward its output is float32" in _found(model, _plan(norm=BF16))


def test_a_softmax_that_is_not_pinned_is_found() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1))
    plan = Plan({"0": SitePlan(BF16)})
    apply(model, plan)
    found = _found(model, Plan({**plan.sites, "1": SitePlan(FP32)}), torch.ones(2, 4))
    assert "1: planned fp32, but in the forward _softmax gives bfloat16" in found


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = runtime.pinned("Attends.forward#softmax.0", F.softmax)(q @ k.transpose(-1, -2), -1)
        return scores @ v


def test_functional_ops_are_compared_with_the_plan() -> None:
    model, x = Attends(), torch.randn(2, 3, 8)
    sites = {"qkv": SitePlan(BF16), "#softmax.0": SitePlan(FP32, how="source")}
    follows = {"#matmul.0": SitePlan(BF16, how="follow"), "#matmul.1": SitePlan(BF16, how="follow")}
    plan = Plan({**sites, **follows})
    applied = apply(model, plan)
    assert runtime.PINS == {"Attends.forward#softmax.0": "fp32"}
    # What is computed in fp32 is given back in bf16, to the matmul behind it.
    assert _found(model, plan, x) == []
    runtime.PINS.clear()
    assert _found(model, plan, x) == ["#softmax: planned fp32, but in the forward softmax computes in bfloat16"]
    applied.undo()


def test_a_follower_that_runs_in_another_format_is_found() -> None:
    model, x = Attends(), torch.randn(2, 3, 8)
    plan = Plan({"qkv": SitePlan(BF16), "#matmul.0": SitePlan(FP32, how="follow")})
    apply(model, plan)
    assert _found(model, plan, x) == ["#matmul: planned fp32, but in the forward matmul computes in bfloat16"]


def test_regions_are_compared_by_the_products_inside() -> None:
    class Leaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", enabled=False):
                return x.float() @ self.weight

    model = nn.Sequential(Leaf())
    plan = Plan({"0": SitePlan(BF16, how="autocast")})
    apply(model, plan)
    found = _found(model, plan, torch.ones(2, 4))
    assert "0: planned bf16, but in the forward mm multiplies float32" in found
    assert "0: planned bf16, but in the backward mm multiplies float32" in found


def test_a_region_that_a_trainer_enters_around_its_steps_alone_is_missed_in_eval_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    plan = Plan({"": SitePlan(BF16, how="autocast")})

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(torch.ones(2, 4)).float().sum()
        loss.backward()

    assert [mismatch.phase for mismatch in check_realised(model, step, plan)] == ["eval"]


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_how_a_weight_is_made_is_not_the_modules_work(norm: Callable[[nn.Module], nn.Module]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older of the two is deprecated in some versions of torch
        layer = norm(nn.Linear(4, 4))  # its power iteration runs in FP32
    model = nn.Sequential(layer)
    plan = Plan({"0": SitePlan(BF16, how=how_to_apply(layer) or "swap")})
    apply(model, plan)
    assert _found(model, plan, torch.ones(2, 4)) == []


def test_a_pin_leaves_what_has_more_bits() -> None:
    class Double(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(runtime.pinned("Double.forward#exp.0", torch.exp)(x.double()).float())

    model, x = Double(), torch.randn(2, 8)
    plan = Plan({"fc": SitePlan(BF16), "#exp.0": SitePlan(FP32, how="source")})
    apply(model, plan)
    assert _found(model, plan, x) == []
