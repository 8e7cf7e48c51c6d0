"""analyze over graphs and over captured files: selection, suppression, JSON."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from amptune.analyze.assumed.evidence import gather
from amptune.analyze.runner import Analysis, Question, analyze, analyze_graph
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.graph import INPUT, PrecisionGraph
from amptune.core.hardware import gpus_named
from amptune.errors import ConfigError
from amptune.report.table import render_estimates
from tests.analyze.graphs import graph_of, linear, mlp, op

QUESTION = Question(gpus_named(("h100",)))
MODEL = """\
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(1000, 1003)
        self.down = nn.Linear(1003, 1000)

    def forward(self, x):
        h = F.relu(self.up(x)){first}
        return x + self.down(h){second}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))

    def forward(self, x):
        return self.blocks(x)


def make_model():
    return Model()


def make_batch():
    return torch.randn(8192, 1000), torch.randn(8192, 1000)


def loss_fn(output, batch):
    return F.mse_loss(output, batch[1])
"""


def judge(folder: Path, first: str = "", second: str = "", **changes: object) -> Analysis:
    file = folder / "model.py"
    file.write_text(MODEL.format(first=first, second=second))
    captured = capture(load_target(TargetSpec(str(file))))
    return analyze(captured, dataclasses.replace(QUESTION, path=str(file), **changes))  # type: ignore[arg-type]


def test_repeated_blocks_give_one_finding_for_each_line(tmp_path: Path) -> None:
    found = [finding for finding in judge(tmp_path).findings if finding.rule in ("G101", "G102")]
    assert [(finding.rule, finding.location.line, len(finding.evidence["sites"])) for finding in found] == [
        ("G102", 13, 3),
        ("G101", 14, 3),
    ]
    up = found[0]
    assert (up.evidence["value"], up.evidence["padded"]) == (1003, 1008)
    assert up.evidence["waste"] == pytest.approx(5 / 1003, rel=1e-3)
    assert up.evidence["saves_ms"]["h100"] > 0
    assert "1003" in up.message
    assert "1008" in up.message
    assert "would save about" in up.message


def test_a_comment_on_the_line_silences_one_rule(tmp_path: Path) -> None:
    found = judge(tmp_path, first="  # amptune: ignore[G102] the data has this width").findings
    assert not [finding for finding in found if finding.rule == "G102"]
    assert [finding for finding in found if finding.rule == "G101"]


def test_a_comment_without_codes_silences_the_line(tmp_path: Path) -> None:
    found = judge(tmp_path, first="  # amptune: ignore", second="  # amptune: ignore").findings
    assert not [finding for finding in found if finding.location.line in (13, 14)]


def test_module_paths_can_be_left_out(tmp_path: Path) -> None:
    found = judge(tmp_path, ignore_modules=("blocks.0.*", "blocks.1.*"))
    sites = {site for finding in found.findings for site in finding.evidence.get("sites", [])}
    assert sites
    assert all(site.startswith("blocks.2") for site in sites)


@pytest.mark.parametrize(
    ("select", "ignore", "expected"),
    [(("G102",), (), {"G102"}), (("G1",), ("G101", "G108"), {"G102"}), (("G2",), (), set())],
)  # fmt: skip
def test_rules_are_selected_by_prefix(
    tmp_path: Path, select: tuple[str, ...], ignore: tuple[str, ...], expected: set[str]
) -> None:
    assert {finding.rule for finding in judge(tmp_path, select=select, ignore=ignore).findings} == expected


UNIT = """\
import torch
from torch import nn


def unit(x):
    return x / {root}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.image = nn.Linear(16, 8)
        self.text = nn.Linear(16, 8)

    def forward(self, x):
        return (unit(self.image(x)) * unit(self.text(x))).sum(-1)


def make_model():
    return Net()


def make_batch():
    return torch.randn(32, 16), torch.randn(32)


def loss_fn(output, batch):
    return torch.nn.functional.mse_loss(output, batch[1])
"""


@pytest.mark.parametrize(
    ("root", "rule", "words"),
    [
        ("torch.pow((x * x).sum(-1, keepdim=True), 0.5)", "G206", "what is normalised by it NaN"),
        ("x.norm(dim=-1, keepdim=True)", "G205", "0 / 0 is NaN"),
    ],
)
def test_a_normalisation_by_hand_is_told_once(tmp_path: Path, root: str, rule: str, words: str) -> None:
    file = tmp_path / "model.py"
    file.write_text(UNIT.format(root=root))
    question = dataclasses.replace(QUESTION, path=str(file), select=("G205", "G206"))
    (found,) = analyze(capture(load_target(TargetSpec(str(file)))), question).findings
    assert (found.rule, found.location.line) == (rule, 6)
    assert words in found.message


def test_a_selector_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match="G999"):
        analyze_graph(mlp(), dataclasses.replace(QUESTION, select=("G999",)))


def test_json_has_capture_and_estimate(tmp_path: Path) -> None:
    data = judge(tmp_path).to_json()
    assert data["capture"]["sites"] == 13
    assert data["capture"]["frontend"] in ("export", "record-fake", "record-real")
    cell = data["estimate"]["h100"]["autocast-bf16+fixed"]
    assert set(cell) >= {"step_ms", "memory_bytes", "speedup"}
    assert cell["speedup"] > data["estimate"]["h100"]["autocast-bf16"]["speedup"] > 1


def test_the_same_question_gives_the_same_answer(tmp_path: Path) -> None:
    first, second = judge(tmp_path), judge(tmp_path)
    assert first.findings == second.findings
    assert first.to_json()["estimate"] == second.to_json()["estimate"]


def test_hardware_gaps_are_warnings_only_on_named_gpus() -> None:
    named = analyze_graph(mlp(), dataclasses.replace(QUESTION, gpus=gpus_named(("v100",)), select=("G405",)))
    table = dataclasses.replace(QUESTION, gpus=gpus_named(("v100",)), gpus_named=False, select=("G405",))
    assert [str(finding.severity) for finding in named.findings] == ["warning"]
    assert [str(finding.severity) for finding in analyze_graph(mlp(), table).findings] == ["info"]


def with_transform() -> PrecisionGraph:
    return graph_of(linear("fc", INPUT, 64, 64, 48), op("#fft.0", "fft", "fc", shape=(64, 48), line=7))


def test_a_recipe_that_raises_is_not_priced() -> None:
    table = analyze_graph(with_transform(), QUESTION).to_json()["estimate"]["h100"]
    assert table["fp32"]["step_ms"] > 0
    assert "reason" not in table["fp32"]
    for name in ("autocast-bf16", "autocast-bf16+fixed", "autocast-fp16", "fp8-rowwise"):
        entry = dict(table[name])
        assert entry.pop("reason").startswith("G403 at model.py:7: a Fourier transform of")
        assert set(entry.values()) == {None}
        assert set(entry) == set(table["fp32"])


def test_a_rule_that_was_not_asked_for_still_stops_its_recipes() -> None:
    found = analyze_graph(with_transform(), dataclasses.replace(QUESTION, select=("G1",)))
    assert not [finding for finding in found.findings if finding.rule == "G403"]
    assert found.to_json()["estimate"]["h100"]["autocast-bf16"]["step_ms"] is None


def test_the_table_says_which_recipes_do_not_run_and_where() -> None:
    text = render_estimates(analyze_graph(with_transform(), QUESTION).to_json()["estimate"], "eager")
    (row,) = [line for line in text.splitlines() if line.strip().startswith("autocast-bf16 ")]
    assert row.split()[1:] == ["does", "not", "run", "-"]
    assert "see G403 at model.py:7" in text


def test_a_layer_has_one_padded_size_for_all_formats() -> None:
    found = analyze_graph(graph_of(linear("fc", INPUT, 8192, 4100, 1030)), QUESTION).findings
    (told,) = (each for each in found if "padded" in each.evidence)
    assert (told.evidence["dimension"], told.evidence["padded"], told.evidence["together"]) == ("K", 4160, 1030)
    assert "FP8 takes it too" in told.message
    assert "together with out_features N = 1030 (to 1040)" in told.message
    alone = analyze_graph(
        graph_of(linear("fc", INPUT, 8192, 4100, 1030)), dataclasses.replace(QUESTION, select=("G108",))
    )
    assert [each.evidence["padded"] for each in alone.findings] == [[4160, 1040]]


RECURRENT = """\
import torch
from torch import nn


def make_model():
    return nn.LSTM(333, 500, 2, bidirectional=True, batch_first=True)


def make_batch():
    return torch.randn(64, 100, 333)
"""


def test_the_layers_of_an_rnn_are_one_finding(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text(RECURRENT)
    analysis = analyze(capture(load_target(TargetSpec(str(file)))), dataclasses.replace(QUESTION, select=("G1",)))
    (found,) = [each for each in analysis.findings if each.rule == "G101"]
    assert found.location.line == 6
    assert "K = 333 (pad to 336) and 500 (pad to 504): not a multiple of 8" in found.message
    assert "K = 1000" not in found.message
    assert found.evidence["saves_ms"]["h100"] > 0


def test_a_model_in_bf16_is_not_called_fp32(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    text = MODEL.format(first="", second="").replace("return Model()", "return Model().bfloat16()")
    file.write_text(text.replace("(8192, 1000)", "(8192, 1000, dtype=torch.bfloat16)"))
    estimate = analyze(capture(load_target(TargetSpec(str(file)))), QUESTION).to_json()["estimate"]
    assert estimate["h100"]["fp32"]["own_formats"] == {"bfloat16": 1.0}
    assert "own_formats" not in estimate["h100"]["autocast-bf16"]
    assert "own_formats" not in judge(tmp_path).to_json()["estimate"]["h100"]["fp32"]


def test_idle_tiles_are_said_once_for_a_shape() -> None:
    """Products of one shape on several lines, as the projections of an attention, have one reason and one remedy."""
    sites = [linear(f"layer.{name}", INPUT, 1024, 4096, 2176, line=line) for line, name in enumerate("qkvo", start=1)]
    found = analyze_graph(graph_of(*sites), dataclasses.replace(QUESTION, select=("G109",))).findings
    assert [(finding.location.line, finding.evidence["sites"]) for finding in found] == [(1, [s.id for s in sites])]


def test_channels_last_is_not_advised_where_the_predicted_step_is_longer(tmp_path: Path) -> None:
    """GroupNorm costs more in channels_last than the transposes of small convolutions do in contiguous layout."""
    file = tmp_path / "model.py"
    file.write_text(NORMS)
    gpus = gpus_named(("v100",))
    found = analyze(capture(load_target(TargetSpec(str(file)))), dataclasses.replace(QUESTION, gpus=gpus))
    table = found.estimates["v100"]
    now, fixed = (table[f"autocast-fp16{suffix}"].step_ms for suffix in ("", "+fixed"))
    assert fixed > now
    assert "G110" not in {finding.rule for finding in found.findings}


NORMS = """\
import torch
from torch import nn


def make_model():
    blocks = (nn.Sequential(nn.Conv2d(128, 128, 3, padding=1), nn.GroupNorm(32, 128), nn.SiLU()) for _ in range(6))
    return nn.Sequential(*blocks)


def make_batch():
    return torch.randn(64, 128, 64, 64), None


def loss_fn(output, batch):
    return output.float().square().mean()
"""


def test_what_a_gpu_emulates_is_no_measure_of_a_gain(tmp_path: Path) -> None:
    """A V100 has no BF16: under FP16 alone a promoted product of activations counts there, and is said so."""
    text = MODEL.replace("x + self.down(h){second}", "x + self.down(h * self.scale)").replace(
        "        self.down", "        self.scale = nn.Parameter(torch.ones(1003))\n        self.down"
    )
    file = tmp_path / "model.py"
    file.write_text(text.format(first=""))
    captured = capture(load_target(TargetSpec(str(file))))
    question = dataclasses.replace(QUESTION, gpus=gpus_named(("v100",)), path=str(file))
    found = [each for each in analyze(captured, question).findings if each.rule == "G306"]
    assert found
    assert all("autocast-fp16" in each.message and "bf16" not in each.message for each in found)


@pytest.mark.parametrize("line", ["h.chunk(2, 1)[1]", "h.split([16, 16], 1)[0]", "h.unbind(0)[1][None]"])
@pytest.mark.parametrize("frontend", ["export", "record-fake"])
def test_ranges_of_shares_of_a_part(line: str, frontend: str, tmp_path: Path) -> None:
    source = "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n"
    source += "        super().__init__()\n        self.fc = nn.Linear(32, 32)\n\n    def forward(self, x):\n"
    source += f"        h = self.fc(x)\n        return torch.softmax({line}, -1)\n\n\ndef make_batch():\n"
    file = tmp_path / "model.py"
    file.write_text(source + "    return torch.rand(4, 32)\n")
    target, said = load_target(TargetSpec(str(file))), list[str]()
    captured = capture(target, frontends=(frontend,))
    evidence = gather(target, captured, say=said.append)
    assert not said
    found = analyze(captured, dataclasses.replace(QUESTION, evidence=evidence))
    assert found.ranges["sites"]["#softmax.0"]["bound"] == {"low": 0.0, "high": 1.0}
