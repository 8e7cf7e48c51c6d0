"""Value ranges of whole models: what is assumed, what a step shows, and that the bounds hold for what was seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from amptune.analyze.assumed.assume import assume, parse_range
from amptune.analyze.assumed.evidence import gather
from amptune.analyze.assumed.initial import recorded_initialisers
from amptune.analyze.assumed.observe import stat_of
from amptune.analyze.runner import Analysis, Question, analyze
from amptune.analyze.sitefacts.enrich import enrich
from amptune.capture import Capture, Target, TargetSpec, capture, load_target
from amptune.capture.fakes import new_fake_mode, parameters_as_fakes
from amptune.cli import run
from amptune.core.autocast import realise
from amptune.core.bounds.intervals import Range
from amptune.core.bounds.ranges import Ranges
from amptune.core.finding import Severity
from amptune.core.formats import Format
from amptune.core.hardware import gpus_named
from amptune.core.recipes import RECIPES
from amptune.errors import UsageError, WorkError

HEADER = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n\n"
FOOTER = """

def make_model():
    return Net()


def make_batch():
    return {batch}


def loss_fn(output, batch):
    return output.float().square().mean()
"""


def loaded(tmp_path: Path, text: str, batch: str = "torch.rand(8, 16), None") -> tuple[Target, Capture]:
    file = tmp_path / "model.py"
    file.write_text(HEADER + text + FOOTER.format(batch=batch))
    target = load_target(TargetSpec(str(file)))
    captured = capture(target, frontends=("record-fake",))
    enrich(captured.graph, captured.graph_module)
    return target, captured


def judged(target: Target, captured: Capture, **options: Any) -> Analysis:
    evidence = gather(target, captured, **options)
    return analyze(captured, Question(gpus_named(("h100",)), evidence=evidence, select=("G2",)))


NET = """\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, image):
        {body}
"""
SMALL = NET.format(body="return self.fc(image / 255)")

VARIED = {
    "transformer": """\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), nn.LayerNorm(16)

    def forward(self, x):
        return self.norm(self.layer(x[None])[0])
""",
    "convolutions": """\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.up = nn.Conv1d(1, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ConvTranspose1d(8, 4, 2)
        self.group = nn.GroupNorm(2, 4)

    def forward(self, x):
        h = F.max_pool1d(F.relu(self.norm(self.conv(x[:, None]))), 2)
        return F.leaky_relu(self.group(self.up(h)), 0.2)
""",
    "recurrent": """\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru, self.cell = nn.LSTM(16, 8), nn.GRU(8, 8), nn.GRUCell(8, 8)

    def forward(self, x):
        h, state = self.lstm(x)[0], torch.zeros(1, 8)
        for step in range(4):
            state = self.cell(self.gru(h)[0][step : step + 1], state) * 1.5
        return state
""",
    "parts of a tensor": """\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 32)

    def forward(self, x):
        a, b = self.fc(x).chunk(2, -1)
        left, right = a[:, :8], a[:, 8:]
        pairs = (a[:, None] - a[None, :]).abs().sum(-1)
        return a * b, left * right, a - a[:, :1], a - a.roll(1, 0), pairs, a - left.amax(-1, keepdim=True)
""",
    "reductions and masks": """\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        h = self.fc(x)
        keep = h > 0
        mean = (h * keep).sum(1) / keep.sum(1).clamp(min=1)
        unit = F.normalize(h, dim=-1)
        shares = (h - h.amax(-1, keepdim=True)).exp()
        top = torch.topk(h.softmax(-1), 2).values.sum(-1)
        return mean, unit @ unit.T, shares.sum(-1), h.var(-1), h.cumsum(-1), h.norm(dim=-1), top, (h ** 3).floor()
""",
    "attention by hand": """\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        q = q * torch.rsqrt(q.pow(2).mean(-1, keepdim=True) + 1e-6)
        k = k / (k.std(-1, keepdim=True) + 1e-3)
        scores = torch.einsum("id,jd->ij", q, k).masked_fill(torch.ones(8, 8).triu(1) > 0, float("-inf"))
        return torch.where(v > 0, scores.softmax(-1) @ v, v.exp().log1p()) + F.scaled_dot_product_attention(q, k, v)
""",
}


@pytest.mark.parametrize("name", VARIED)
def test_bounds_hold_for_what_a_step_shows(name: str, tmp_path: Path) -> None:
    """Every value seen in a step on the batch lies within the bound under the batch's and the weights' values."""
    text = VARIED[name]
    target, captured = loaded(tmp_path, text + _joined_outputs(text), "torch.randn(8, 16) * 3, None")
    evidence = gather(target, captured, observe=True)
    assert evidence.observed is not None
    assert evidence.assumptions is not None
    bounds = Ranges(captured.graph, realise(captured.graph, RECIPES["fp32"]), evidence.assumptions)
    judged_sites = 0
    for site_id, seen in evidence.observed.forward.items():
        bound = bounds[site_id]
        slack = 1e-4 * max(1.0, seen.magnitude)
        assert bound.low - slack <= seen.low, (site_id, bound, seen.range)
        assert seen.high <= bound.high + slack, (site_id, bound, seen.range)
        judged_sites += bound.is_known
    assert judged_sites >= len(evidence.observed.forward) / 2


def _joined_outputs(text: str) -> str:
    """Models that give several tensors add them up, for a loss."""
    if "return a * b" not in text and "return mean" not in text:
        return ""
    return """

class Several(Net):
    def forward(self, x):
        return sum(each.sum() for each in super().forward(x))


Net = Several
"""


def test_inputs_come_from_the_option_the_batch_or_the_type(tmp_path: Path) -> None:
    target, captured = loaded(tmp_path, SMALL, "torch.rand(8, 16), torch.zeros(8, dtype=torch.uint8)")
    found = {each.name: each for each in assume(target, captured).inputs}
    assert found["image"].source == "batch"
    assert 0 <= found["image"].range.low < found["image"].range.high <= 1
    assert (found["targets"].source, found["targets"].range) == ("type", Range(0.0, 255.0))
    stated = assume(target, captured, ["image=0:255"])
    assert (stated.inputs[0].source, stated.inputs[0].range) == ("--range", Range(0.0, 255.0))
    assert list(stated.facts.inputs.values()) == [Range(0.0, 255.0)]


@pytest.mark.parametrize(
    ("text", "words"), [("image", "does not read"), ("image=1", "does not read"), ("image=a:b", "does not read"),
                        ("image=3:1", "is not below"), ("picture=0:1", "it has: image")],
)  # fmt: skip
def test_a_wrong_range_is_refused(text: str, words: str, tmp_path: Path) -> None:
    target, captured = loaded(tmp_path, SMALL)
    with pytest.raises(UsageError) as caught:
        assume(target, captured, [text])
    assert words in f"{caught.value} {caught.value.hint}"


def test_an_open_end() -> None:
    assert parse_range("x=0:") == ("x", Range(0.0, float("inf")))


def test_what_the_user_states_is_a_fact_for_every_rule(tmp_path: Path) -> None:
    body = NET.format(body="return torch.exp(30 * image) + self.fc(image)")
    target, captured = loaded(tmp_path, body)
    assert {each.rule for each in judged(target, captured).findings} == {"G203"}
    assert not judged(target, captured, stated=["image=0:2"]).findings


def test_a_step_shows_an_overflow(tmp_path: Path) -> None:
    target, captured = loaded(tmp_path, NET.format(body="h = self.fc(image) * 9000\n        return h * 300 + h"))
    assert not [each for each in judged(target, captured).findings if each.severity is Severity.ERROR]
    found = [each for each in judged(target, captured, observe=True).findings if each.severity is Severity.ERROR]
    assert {each.rule for each in found} == {"G201"}
    assert all("in a step on the batch" in each.message and each.evidence["chain"] for each in found)


def test_an_overflow_is_said_once_where_it_begins(tmp_path: Path) -> None:
    body = "h = self.fc(image) * 900\n        y = h * h\n        return h / torch.sqrt(y.mean(-1, keepdim=True) + 1e-5)"
    target, captured = loaded(tmp_path, NET.format(body=body))
    assert [each.rule for each in judged(target, captured).findings if each.evidence.get("format")] == ["G214"]
    found = [each for each in judged(target, captured, observe=True).findings if each.evidence.get("format")]
    (finding,) = [each for each in found if each.rule != "G202"]
    assert (finding.rule, finding.site, finding.severity) == ("G201", "#mul.1", Severity.ERROR)
    assert "and so are 2 of the results after it" in finding.message


def test_a_fill_that_raises_is_said_once(tmp_path: Path) -> None:
    """The values that a step in FP32 shows there are those that FP16 never comes to."""
    body = "return self.fc(image).fill_diagonal_(-1e9).softmax(-1)"
    target, captured = loaded(tmp_path, NET.format(body=body))
    findings = [each for each in judged(target, captured, observe=True).findings if each.rule == "G201"]
    assert [(each.severity, "raises" in each.message) for each in findings] == [(Severity.ERROR, True)]


def test_what_is_certain_under_the_assumptions_is_an_error_and_what_is_possible_information(tmp_path: Path) -> None:
    body = NET.format(body="return F.relu(self.fc(image)) * 100 + image.half() * 100")
    target, captured = loaded(tmp_path, body)
    certain = judged(target, captured, stated=["image=700:900"]).findings
    certain = tuple(each for each in certain if each.rule == "G201")
    assert certain[-1].severity is Severity.ERROR
    assert certain[-1].message.endswith("with image in [700, 900] (--range)")
    possible = [each for each in judged(target, captured, stated=["image=-900:900"]).findings if each.rule == "G201"]
    assert [each.severity for each in possible] == [Severity.INFO]
    assert "image in [-900, 900] (--range), weights as make_model() gives them" in possible[0].message


def test_the_section_of_the_report(tmp_path: Path) -> None:
    target, captured = loaded(tmp_path, NET.format(body="return torch.sigmoid(self.fc(image)) * 1e-8"))
    section = judged(target, captured, observe=True).ranges
    assert section["version"] == 1
    assert section["assumed"]["weights"] == "as make_model() gives them"
    product = section["sites"]["#mul.0"]
    assert 0 < product["bound"]["low"] < product["observed"]["low"]
    assert product["observed"]["high"] < product["bound"]["high"] < 1e-8
    assert set(product["verdict"].values()) == {"cannot overflow"}
    assert product["observed"]["underflow"] == {"fp16": 1.0, "bf16": 0.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0}
    assert product["gradient"]["count"] == 128
    json.dumps(section, allow_nan=False)


def test_lazy_layers_leave_their_weights_open(tmp_path: Path) -> None:
    target, captured = loaded(tmp_path, SMALL.replace("nn.Linear(16, 16)", "nn.LazyLinear(16)"))
    found = gather(target, captured)
    assert found.assumptions is not None
    assert not found.assumptions.weights
    assert found.inputs[0].source == "batch"


def test_statistics_of_a_tensor() -> None:
    found = stat_of(torch.tensor([0.0, 1e-9, -3.0, 2.0, float("inf"), torch.finfo(torch.float32).min]))
    assert found is not None
    assert (found.low, found.high, found.count, found.zeros, found.nonfinite) == (-3.0, 2.0, 6, 1, 2)
    assert dict(found.exponents) == {-30: 1, 1: 2}
    assert found.underflow(Format.FP16) == pytest.approx(1 / 3)
    assert found.underflow(Format.FP16, 65536.0) == 0.0
    assert not found.overflows(Format.FP16)
    assert stat_of(torch.tensor([1, 2])) is None


def test_initialisers_bound_weights_without_memory() -> None:
    with parameters_as_fakes(new_fake_mode()), recorded_initialisers() as found:
        linear, embedding = torch.nn.Linear(64, 32), torch.nn.Embedding(100, 16, padding_idx=0)
        torch.nn.init.trunc_normal_(linear.bias, std=0.02)
        norm = torch.nn.LayerNorm(8)
        torch.nn.init.normal_(norm.bias, 1.0, 0.5)
        bare = torch.nn.Parameter(torch.empty(3))
    weight = found.of(linear.weight)
    assert weight is not None
    assert weight.range.high == -weight.range.low == pytest.approx(0.125)  # 1 / sqrt(64)
    assert 64 * 0.0625 < weight.row_sum < 64 * 0.125
    others = [found.of(tensor) for tensor in (embedding.weight, linear.bias, norm.bias)]
    assert [each.range for each in others if each] == [Range(-6.0, 6.0), Range(-0.12, 0.12), Range(-2.0, 4.0)]
    assert found.of(bare) is None


def test_sampled_rows_stay_within_the_estimate() -> None:
    with parameters_as_fakes(new_fake_mode()), recorded_initialisers() as found:
        fake = torch.nn.Linear(512, 256)
        torch.nn.init.normal_(fake.weight, std=0.02)
    torch.manual_seed(0)
    real = torch.randn(256, 512) * 0.02
    known = found.of(fake.weight)
    assert known is not None
    assert real.abs().sum(1).max() < known.row_sum < 1.5 * real.abs().sum(1).max()


def test_calibration_of_what_does_not_fit_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, captured = loaded(tmp_path, SMALL)
    monkeypatch.setattr("amptune.analyze.assumed.observe.available_bytes", lambda: 100)
    with pytest.raises(WorkError, match="--calibrate runs the model for real"):
        gather(target, captured, observe=True)


def test_calibration_moves_to_the_processor_where_the_gpu_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_small(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    target, captured = loaded(tmp_path, SMALL)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("amptune.analyze.assumed.observe._on_gpu", too_small)
    observed = gather(target, captured, observe=True).observed
    assert observed is not None
    assert observed.device == "cpu"


def test_dimensions_that_change(tmp_path: Path) -> None:
    text = SMALL + "\n\ndef train_batches():\n    yield torch.rand(8, 16), None\n    yield torch.rand(5, 16), None\n"
    target, captured = loaded(tmp_path, text)
    assert [(each.axis, each.sizes) for each in gather(target, captured).dynamic] == [(0, (5, 8))]


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.py").write_text(HEADER + SMALL + FOOTER.format(batch="torch.rand(8, 16), None"))
    monkeypatch.chdir(tmp_path)
    assert run(["analyze", "--gpu", "h100", "--range", "image=0:255", "--calibrate", "--format", "json"]) == 0
    section = json.loads(capsys.readouterr().out)["ranges"]
    assert section["assumed"]["inputs"]["image"] == {"low": 0.0, "high": 255.0, "source": "--range", "dtype": "float32"}
    assert section["observed"]["loss"] > 0
    assert run(["analyze", "--gpu", "h100", "--range", "picture=0:1"]) == 2
    assert "it has: image" in capsys.readouterr().err


def test_a_scale_that_is_a_parameter_bounds_what_it_multiplies(tmp_path: Path) -> None:
    scaled = """\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 16)
        self.scale = nn.Parameter(torch.zeros(16))

    def forward(self, x):
        return torch.exp(torch.tanh(self.fc(x)) * torch.exp(self.scale{times}))
"""
    assert not judged(*loaded(tmp_path, scaled.format(times=""))).findings
    (found,) = judged(*loaded(tmp_path, scaled.format(times=" * 5"))).findings
    assert found.rule == "G203"  # exp(exp(5)): what training may make of a scale of 1


def test_a_product_of_bounded_tensors_is_told_once_where_ranges_are_asked_for(tmp_path: Path) -> None:
    body = "b = torch.sigmoid(self.fc(image)) * 640\n        return b[:, :8] * b[:, 8:]"
    target, captured = loaded(tmp_path, NET.format(body=body))
    found = [each for each in judged(target, captured, stated=["image=0:1"]).findings if each.rule == "G201"]
    assert len(found) == 1
    assert "may reach 4.1e+05" in found[0].message


@pytest.mark.parametrize(("layer", "terms"), [
    ("nn.ConvTranspose2d(3, 2, 5, stride=2, bias=False)", 27),
    ("nn.ConvTranspose2d(3, 2, 5, stride=2, dilation=2, bias=False)", 75),
    ("nn.ConvTranspose1d(12, 2, 3, bias=False)", 36),
])  # fmt: skip
def test_windows_of_a_transposed_convolution_meet(layer: str, terms: int, tmp_path: Path) -> None:
    shape = "(1, 3, 16, 16)" if "2d" in layer else "(1, 12, 64)"
    text = (
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        f"        self.up = {layer}\n        nn.init.ones_(self.up.weight)\n\n"
        "    def forward(self, image):\n        return self.up(image) + 0\n"
    )
    target, captured = loaded(tmp_path, text, f"torch.ones({shape}), None")
    assumed = assume(target, captured, ["image=0:1"]).assumptions
    bounds = Ranges(captured.graph, realise(captured.graph, RECIPES["fp32"]), assumed)
    output = target.make_model()(torch.ones(eval(shape))).detach()
    assert float(output.max()) == terms
    assert bounds["up"].high == terms


def test_the_weight_that_weight_norm_makes_has_no_bounds_of_its_parts(tmp_path: Path) -> None:
    text = NET.replace("nn.Linear(16, 16)", "nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))")
    target, captured = loaded(tmp_path, text.format(body="return self.fc(image) + 0"))
    assumed = assume(target, captured, ["image=0:1"]).assumptions
    assert not Ranges(captured.graph, realise(captured.graph, RECIPES["fp32"]), assumed)["fc"].is_known
