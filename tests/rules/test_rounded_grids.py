"""Grids, integers and levels of which 16 bits keep some (G211), predictions rounded beside an offset (G212), deviations
of one number (G205), numbers of the batch over FP16's largest (G201), squares of what is bounded, but not by enough."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from amptune_rules.graph._examples import model_file

from amptune.core.finding import Severity
from tests.rules.test_written_otherwise import found

WIDE = "torch.linspace(0, 1, 700, device=x.device)"
MESH = "a, b = torch.meshgrid(torch.linspace(-1, 1, 900), torch.linspace(-1, 1, 8), indexing='ij')"


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (f"h = self.fc(x)\nreturn torch.cat([h[0], {WIDE}.to(h.dtype)]).sin()", 1),
        (f"return self.fc(x[:1] - {WIDE}.bfloat16()[:, None])", 1),
        (f"near = ({WIDE} * 2 - 1).bfloat16()\nreturn self.fc(x).mean(1)[:, None] - near", 1),
        (f"return self.fc(F.pad({WIDE}, (0, 4)).view(11, 64)) + torch.stack([{WIDE}.half()]).mean()", 0),
        (f"{MESH}\nreturn self.fc(x)[0, 0] + torch.stack([a, b]).bfloat16()", 1),
        ("return self.fc(x).mean(1)[:, None] - self.places.to(torch.bfloat16)", 1),
        ("return self.fc(x).mean(1)[:, None] - self.places", 0),
        ("return self.fc(x).mean(1)[:, None] - self.few.bfloat16()", 0),
        ("return self.fc(x).mean(1)[:, None] + self.slopes.bfloat16().sum(1)", 0),
        (f"return self.fc(x).mean(1)[:, None] * {WIDE}.bfloat16()", 0),
        (f"h = self.fc(x)\nreturn h.mean(1)[:, None] - {WIDE}.to(x.dtype)", 0),
    ],
)
def test_a_grid_of_which_bf16_keeps_a_part(body: str, count: int, tmp_path: Path) -> None:
    init = (
        "self.fc = nn.Linear(64, 64)\nself.register_buffer('places', 3 + torch.arange(800) * 0.01)\n"
        "self.register_buffer('few', torch.linspace(0, 1, 200))\n"
        "self.register_buffer('slopes', torch.arange(700.0)[:, None] * torch.rand(4))"
    )
    findings = [each for each in found("G211", model_file(body, init=init), tmp_path) if "evenly" in each.message]
    assert len(findings) == count


def test_how_many_places_are_left_of_a_grid_is_what_torch_leaves(tmp_path: Path) -> None:
    body = "return torch.stack([self.fc(x)[:, :1] + torch.linspace(-2, 5, 1111, dtype=torch.bfloat16)])"
    (finding,) = [each for each in found("G211", model_file(body), tmp_path) if "evenly" in each.message]
    assert finding.evidence["left"] == torch.linspace(-2, 5, 1111).bfloat16().unique().numel()


PACKED = "torch.cat([x[:, :2], kind[:, None]], 1).to(torch.bfloat16)"
KINDS = "(torch.randn(32, 64), torch.arange(32) * {step})"


@pytest.mark.parametrize(
    ("body", "step", "count"),
    [
        ("h = self.fc(x)\nk = kind.to(h.dtype).long()\nreturn h * self.table(k)", 40, 1),
        ("k = torch.stack([kind.half(), x[:, 0].half()], 1)[:, 0].int()\nreturn self.fc(x) * self.table(k)", 40, 0),
        ("k = torch.stack([kind.half(), x[:, 0].half()], 1)[:, 0].int()\nreturn self.fc(x) * self.table(k)", 80, 1),
        (f"k = {PACKED}[:, -1].long()\nreturn self.fc(x) @ F.one_hot(k, 1280).float()[:, :64].t()", 40, 1),
        ("h = self.fc(x)\nk = kind.to(h.dtype).long()\nreturn h * self.table(k)", 8, 0),
        ("k = torch.cat([x[:, :2], kind[:, None]], 1)[:, -1].long()\nreturn self.fc(x) * self.table(k)", 40, 0),
        ("h = self.fc(x)\nreturn h * self.table(kind) + kind.to(h.dtype)[:, None]", 40, 0),
    ],
)  # fmt: skip
def test_integers_that_come_back_from_16_bits(body: str, step: int, count: int, tmp_path: Path) -> None:
    init = "self.fc = nn.Linear(64, 64)\nself.table = nn.Embedding(1280, 64)"
    source = model_file(body, init=init, takes="x, kind", batch=KINDS.format(step=step))
    assert sum("and back" in each.message for each in found("G211", source, tmp_path)) == count


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("return torch.floor(torch.sigmoid(self.fc(x)) * 1023) / 1023", 1),
        ("return (self.fc(x) * 4095).round() / 4095", 1),
        ("return ((self.fc(x).clamp(-1, 1) / (1 / 511)).trunc()) / 511", 1),
        ("return torch.floor(torch.sigmoid(self.fc(x)) * 255) / 255", 0),
        ("return torch.floor(torch.sigmoid(self.fc(x)).float() * 1023) / 1023", 0),
        ("return (self.fc(x) * 0.5).round()", 0),
    ],
)
def test_rounding_to_more_levels_than_bf16_has(body: str, count: int, tmp_path: Path) -> None:
    assert sum("whole numbers" in each.message for each in found("G211", model_file(body), tmp_path)) == count


@pytest.mark.parametrize(
    ("body", "loss", "count"),
    [
        ("return 101.3 + 0.9 * self.fc(x)", "(output - 99.0).square().mean()", 1),
        ("return (self.fc(x) / 4) - 60.0", "F.l1_loss(output.float(), torch.full_like(output, -61.0))", 1),
        ("return 300 + 50 * torch.tanh(self.fc(x))", "F.huber_loss(output, torch.full_like(output, 290.0))", 1),
        ("return 101.3 + 0.9 * self.fc(x).float()", "F.mse_loss(output, torch.full_like(output, 99.0))", 0),
        ("return 0.1 + self.fc(x)", "F.mse_loss(output.float(), torch.full_like(output, 1.0))", 0),
        ("return torch.log_softmax(40.0 + self.fc(x), -1)", "F.nll_loss(output, output.argmax(-1))", 0),
    ],
)
def test_predictions_that_are_rounded_beside_their_offset(body: str, loss: str, count: int, tmp_path: Path) -> None:
    findings = found("G212", model_file(body, loss=loss), tmp_path)
    assert sum("a prediction is rounded" in each.message for each in findings) == count


def test_a_root_of_what_goes_below_zero_says_so(tmp_path: Path) -> None:
    root = "torch.sqrt(1 - 1.7 * (1 - self.fc(x).square()))"
    (finding,) = found("G206", model_file(f"return torch.where(x > 0, {root}, 0.0)"), tmp_path)
    assert "below zero too" in finding.message
    (finding,) = found("G206", model_file("return torch.sqrt(self.fc(x).square())"), tmp_path)
    assert "below zero" not in finding.message


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("return self.fc(x).view(32, 1, 64).std(1)", 1),
        ("return torch.std_mean(self.fc(x)[:1], 0)[0]", 1),
        ("return torch.var(self.fc(x)[:, :2], 1, correction=2)", 1),
        ("return self.fc(x).view(32, 1, 64).std(1, unbiased=False)", 0),
        ("return torch.var(self.fc(x)[:1], 0, correction=0)", 0),
        ("return self.fc(x).view(16, 2, 64).std(1)", 0),
        ("return torch.nan_to_num(self.fc(x)[:1].var(0))", 0),
        ("h = self.fc(x)\nreturn h + h[:1].std(0).nansum()", 0),
        ("h = self.fc(x)\nreturn h + h[:1].std(0).sum()", 1),
        ("h = self.fc(x)\nself.spread = h[:1].detach().std(0)\nreturn h", 0),
    ],
)
def test_a_deviation_of_one_number(body: str, count: int, tmp_path: Path) -> None:
    assert sum("divides by n" in each.message for each in found("G205", model_file(body), tmp_path)) == count


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("h = self.fc(x)\nreturn h * (3e5 / (1 + t).to(h.dtype))", 1),
        ("h = self.fc(x)\nspeed = 900 * (1 + t).to(h.dtype)\nreturn h * (speed * 300 - 1)", 1),
        ("h = self.fc(x)\nreturn h * (3e5 / (1 + t)).float()", 0),
        ("h = self.fc(x)\nreturn h * (3e4 / (1 + t).to(h.dtype))", 0),
        ("h = self.fc(x)\nreturn h * torch.tanh(3e5 / (1 + t).to(h.dtype))", 0),
    ],
)
def test_what_the_batch_alone_takes_out_of_fp16(body: str, count: int, tmp_path: Path) -> None:
    source = model_file(body, takes="x, t", batch="(torch.randn(32, 64), torch.linspace(0, 1, 32)[:, None])")
    findings = [each for each in found("G201", source, tmp_path) if "numbers of the batch, outside" in each.message]
    assert len(findings) == count
    assert all(each.severity is Severity.ERROR for each in findings)


def test_a_square_of_what_is_bounded_by_too_much_names_the_bounds(tmp_path: Path) -> None:
    (finding,) = found("G214", model_file("h = 250 + 20 * torch.sigmoid(self.fc(x))\nreturn (h * h).float()"), tmp_path)
    assert "these lie in [250, 270]" in finding.message
    assert not found("G214", model_file("h = 200 + 20 * torch.sigmoid(self.fc(x))\nreturn (h * h).float()"), tmp_path)


def test_one_hot_adds_up_to_one_in_each_row(tmp_path: Path) -> None:
    body = "h = self.fc(x)\nk = F.one_hot(h.argmax(-1), 64).float()\nreturn h / {total}"
    for total, count in (("k.sum()", 0), ("k.sum(-1, keepdim=True)", 0), ("k[:, 1:].sum()", 1)):
        assert len(found("G205", model_file(body.format(total=total)), tmp_path)) == count
