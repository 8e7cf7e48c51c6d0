"""What is zero with the batch whatever the weights are, or where a relu that is a factor closes, in new spellings."""

from __future__ import annotations

from pathlib import Path

import pytest
from amptune_rules.graph._examples import model_file

from tests.rules.test_written_otherwise import found

INIT = "self.fc = nn.Linear(64, 64)\nself.gain = nn.Parameter(torch.ones(64))"
SOME = "torch.randn(32, 64) * (torch.arange(32) % 4 > 0)[:, None]"
PAIRS = "torch.randn(32, 64) * (torch.arange(32) % 4 > 1)[:, None]"
NONE = "torch.rand(32, 64) + 0.5"
FAR = "40 * torch.arange(2048.0).view(32, 64)"


def messages(code: str, body: str, batch: str, folder: Path) -> list[str]:
    return [each.message for each in found(code, model_file(body, init=INIT, batch=batch), folder)]


@pytest.mark.parametrize(
    ("body", "batch", "count"),
    [
        ("return self.fc(x) / x.abs().sum(1, keepdim=True)", SOME, 1),
        ("w = torch.exp(-x.square())\nreturn self.fc(x) * (w / w.sum(1, keepdim=True))", FAR, 1),
        ("seen = (x.abs() > 0).sum(1)\nreturn self.fc(x).sum(1) / seen", SOME, 1),
        ("return self.fc(x) * (1 / (x * self.gain).square().sum(1, keepdim=True))", SOME, 1),
        ("return self.fc(x) / x.abs().sum(1, keepdim=True).clamp(min=1e-6)", SOME, 0),
        ("w = torch.softmax(-x.square(), 1)\nreturn self.fc(x) * (w / w.sum(1, keepdim=True))", FAR, 0),
        ("seen = (x.abs() > 0).sum(1)\nreturn torch.where(seen > 0, self.fc(x).sum(1) / seen, 0.0)", SOME, 0),
        ("return self.fc(x) / (1 + x.abs().sum(1, keepdim=True))", SOME, 0),
        ("s = x.abs().sum(1)\ny = self.fc(x).sum(1) / s * 2 + 1\nreturn y.masked_fill(s == 0, 0.0)", SOME, 0),
        ("return self.fc(x) / x.abs().sum(1, keepdim=True)", "torch.zeros(32, 64)", 0),
        ("y = F.avg_pool1d(x.square(), 4)\nreturn self.fc(x)[:, :16] / y", SOME, 1),
        (
            (
                "k = torch.ones(1, 1, 5, device=x.device)\ny = F.conv1d(x.abs()[:, None], k, padding=2)[:, 0]\n"
                "return self.fc(x) / y"
            ),
            SOME,
            1,
        ),
        ("return self.fc(x) / (x.square() @ torch.ones(64, 64, device=x.device))", SOME, 1),
        ("return self.fc(x) / (x.square() @ torch.ones(64, 64, device=x.device))", NONE, 0),
        ("y = self.fc(x)\nd = (y[:, None] - y[None]).square().sum(-1)\nreturn 1 / d", NONE, 1),
        (
            "y = self.fc(x)\nd = (y.unsqueeze(0) - y.unsqueeze(1)).abs().mean(-1)\nreturn 1 / (d * self.gain[0])",
            NONE,
            1,
        ),
        ("y = self.fc(x)\nd = (y[:, None] - y[None] + 1).square().sum(-1)\nreturn 1 / d", NONE, 0),
        ("y = self.fc(x)\nd = (y[:, None] - y[None]).square().sum(-1)\nreturn 1 / (d + torch.eye(32))", NONE, 0),
        ("y = self.fc(x)\nreturn 1 / (y[1:] - y[:-1]).square().sum(-1)", NONE, 0),
        ("y = F.dropout(x.abs() + 1, 0.5)\nreturn self.fc(x) / (y + 1)", NONE, 0),
        ("y = torch.fft.rfft(x * self.gain.exp(), dim=1).abs()\nreturn self.fc(x)[:, :33] / y", SOME, 1),
        ("y = torch.fft.fft(x * self.gain.exp())\nreturn self.fc(x) * (y / y.abs()).real", SOME, 1),
        ("y = torch.fft.fft(x * self.gain.exp(), dim=0)\nreturn self.fc(x) * (y / y.abs()).real", SOME, 0),
        ("y = torch.fft.ifft(torch.fft.fft(x) * self.gain)\nreturn self.fc(x) / (y.abs() + 1e-3)", SOME, 0),
    ],
)
def test_a_denominator_that_is_zero_with_the_batch(body: str, batch: str, count: int, tmp_path: Path) -> None:
    assert sum("make_batch()" in each for each in messages("G205", body, batch, tmp_path)) == count


@pytest.mark.parametrize(
    ("body", "batch", "count"),
    [
        ("return torch.sqrt((x * self.gain).square().mean(1)) + self.fc(x).sum(1)", SOME, 1),
        ("return (x.abs() * self.gain.exp()).pow(0.4) + self.fc(x)", SOME, 1),
        ("return (torch.stack([x.abs(), x.square()], 1) * self.gain).sqrt().sum(1) + self.fc(x)", SOME, 1),
        ("return (x.abs() * self.gain.exp()).clamp(max=2.0).sqrt() + self.fc(x)", SOME, 1),
        ("return (x.abs() * self.gain.exp()).clamp(-1, 0.5).pow(0.3) + self.fc(x)", SOME, 1),
        ("return (x.abs() * self.gain.exp()).clamp(min=1e-4).sqrt() + self.fc(x)", SOME, 0),
        ("y = self.fc(x) * (x != 0)\nreturn F.avg_pool1d((y[1:] - y[:-1]).abs() ** 1.5, 8).sqrt()", PAIRS, 1),
        ("y = self.fc(x) * (x != 0)\nreturn F.avg_pool1d((y[1:] - y[:-1]).abs() ** 1.5, 8).sqrt()", SOME, 0),
        ("return torch.sqrt((x * self.gain).square().mean(1)) + self.fc(x).sum(1)", NONE, 0),
        ("return torch.sqrt((x * self.gain).square().mean(1) + 1e-6) + self.fc(x).sum(1)", SOME, 0),
        ("return torch.relu(x * self.gain).sqrt() + self.fc(x)", SOME, 0),
        ("return torch.linalg.vector_norm(x * self.gain, dim=1) + self.fc(x).sum(1)", SOME, 0),
        ("return x.abs().sqrt() * self.gain + self.fc(x)", SOME, 0),
    ],
)
def test_a_root_whose_operand_is_zero_with_the_batch(body: str, batch: str, count: int, tmp_path: Path) -> None:
    assert sum("make_batch()" in each for each in messages("G206", body, batch, tmp_path)) == count


@pytest.mark.parametrize(
    ("code", "body", "count"),
    [
        ("G206", "return torch.pow(F.relu(self.fc(x)) * self.gain, -0.3)", 1),
        ("G206", "return (F.relu(self.fc(x)).float() * x.exp()).rsqrt()", 1),
        ("G205", "return x / (self.gain * self.fc(x).relu())", 1),
        ("G204", "return torch.log(F.relu(self.fc(x)) * self.gain)", 1),
        ("G206", "return torch.pow(F.softplus(self.fc(x)).clamp(min=1e-3) * self.gain, -0.3)", 0),
        ("G206", "return torch.pow((F.relu(self.fc(x)) + 1e-3) * self.gain, -0.3)", 0),
        ("G205", "return x / (self.gain * self.fc(x).relu() + 1)", 0),
        ("G204", "return torch.log1p(F.relu(self.fc(x)) * self.gain.square())", 0),
    ],
)
def test_a_product_that_a_relu_closes(code: str, body: str, count: int, tmp_path: Path) -> None:
    assert sum("product with" in each for each in messages(code, body, NONE, tmp_path)) == count


@pytest.mark.parametrize(
    ("body", "batch", "count"),
    [
        ("p = x.abs() / (1 + x.abs().sum(1, keepdim=True))\nreturn (p * (p.log() - self.fc(x))).sum()", SOME, 1),
        ("p = x.abs() / (1 + x.abs().sum(1, keepdim=True))\nreturn (p * (p.log() - self.fc(x))).sum()", NONE, 0),
        ("p = x.abs() / (1 + x.abs().sum(1, keepdim=True))\nreturn F.kl_div(self.fc(x), p)", SOME, 0),
    ],
)
def test_a_logarithm_of_shares_some_of_which_are_zero(body: str, batch: str, count: int, tmp_path: Path) -> None:
    assert len(messages("G204", body, batch, tmp_path)) == count


SIGNED = "torch.linspace(-0.5, 4.0, 2048).view(32, 64)"


@pytest.mark.parametrize(
    ("code", "body", "batch", "count"),
    [
        ("G206", "return self.fc(2 * torch.sqrt(x + 0.25))", SIGNED, 1),
        ("G206", "return self.fc((x * 3 - 1).pow(0.5))", SIGNED, 1),
        ("G206", "return self.fc((x.square().mean(1, keepdim=True) - 9).rsqrt() * x)", SIGNED, 1),
        ("G204", "return self.fc(torch.log10(x.cumsum(1) * 0.1 - 20))", SIGNED, 1),
        ("G206", "return self.fc(2 * torch.sqrt(x + 0.75))", SIGNED, 0),
        ("G206", "return self.fc(torch.where(x > 0, torch.sqrt(x + 0.25), 0.0))", SIGNED, 0),
        ("G206", "return self.fc(torch.sqrt((x + 0.25).clamp(min=0)))", SIGNED, 0),
        ("G206", "return self.fc((x + 0.25).pow(2))", SIGNED, 0),
        ("G206", "return self.fc((2.5 ** x))", SIGNED, 0),
        ("G204", "return self.fc(torch.log(torch.where(x > 0, x, 1.0)))", SIGNED, 0),
    ],
)
def test_what_is_below_zero_with_the_batch(code: str, body: str, batch: str, count: int, tmp_path: Path) -> None:
    assert sum("NaN" in each for each in messages(code, body, batch, tmp_path)) == count


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("return torch.log(1 + torch.tanh(self.fc(x)) * self.fc(2 * x))", 1),
        ("return torch.log1p(self.fc(x) * F.softplus(self.fc(2 * x)))", 1),
        ("return torch.log(0.5 + self.fc(x) / F.softplus(self.fc(2 * x)))", 1),
        ("y = self.fc(x)\nreturn torch.log(1 + y * y)", 0),
        ("y = self.fc(x)\nreturn torch.log1p(y * y.sign())", 0),
        ("return torch.log(1 + F.softplus(self.fc(x)) * self.fc(2 * x).abs())", 0),
        ("return torch.log((1 + self.fc(x) * self.fc(2 * x)).abs() + 1e-6)", 0),
        ("return torch.log((1 + self.fc(x) * self.fc(2 * x)).clamp(min=1e-4))", 0),
    ],
)
def test_a_logarithm_of_one_and_a_product_of_both_signs(body: str, count: int, tmp_path: Path) -> None:
    assert sum("both signs" in each for each in messages("G204", body, NONE, tmp_path)) == count


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("w = torch.sigmoid(self.fc.weight)\nreturn self.fc(x) @ (w / w.norm(dim=-1, keepdim=True))", 0),
        ("w = torch.sigmoid(self.gain)\nreturn self.fc(x) * (w / w.sum())", 0),
        ("w = torch.relu(self.fc.weight)\nreturn self.fc(x) @ (w / w.norm(dim=-1, keepdim=True))", 1),
        ("w = torch.sigmoid(self.fc(x))\nreturn w / w.norm(dim=-1, keepdim=True)", 1),
    ],
)
def test_a_norm_of_parameters_that_a_sigmoid_keeps_above_zero(body: str, count: int, tmp_path: Path) -> None:
    assert len(messages("G205", body, NONE, tmp_path)) == count


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("w = F.softplus(self.fc(x))\nreturn torch.log(w.prod(1))", 1),
        ("w = self.fc(x).repeat(1, 20).prod(1)\nreturn torch.log(w * x[:, 0].exp())", 1),
        ("w = self.fc(x).reshape(16, 128).prod(1, True)\nreturn torch.log((self.gain.softmax(0) * w).sum(-1))", 1),
        ("w = 1 + F.softplus(self.fc(x))\nreturn torch.log(w.prod(1))", 0),
        ("w = self.fc(x).view(32, 16, 4).prod(-1)\nreturn torch.log(w * x[:, :16])", 0),
        ("w = self.fc(x)\nreturn torch.log(w.prod(1).abs() + 1e-6)", 0),
    ],
)  # fmt: skip
def test_a_logarithm_of_a_product_of_many(body: str, count: int, tmp_path: Path) -> None:
    assert sum("logarithms" in each for each in messages("G204", body, NONE, tmp_path)) == count


HIGH = "torch.linspace(500.0, 1500.0, 2048).view(32, 64)"


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("t = x.half().cumsum(1)\nreturn self.fc(torch.log1p(t.float()))", 1),
        ("t = (x.half() * 90).float()\nreturn self.fc(t)", 1),
        ("t = x.to(torch.float16).sum(1, keepdim=True)\nreturn self.fc(x / t)", 1),
        ("t = x.half().cumsum(1).clamp(max=6e4)\nreturn self.fc(t.float())", 0),
        ("t = x.bfloat16().cumsum(1)\nreturn self.fc(t.float())", 0),
        ("t = (x / 1000).half().cumsum(1)\nreturn self.fc(t.float())", 0),
        (("low = torch.finfo(torch.float16).min\nm = torch.where(x > 900, low, 0.0).half()\n"
         "return (self.fc(x) + (m + m).float()).softmax(-1)"), 0),
    ],
)  # fmt: skip
def test_what_the_batch_alone_makes_infinite(body: str, count: int, tmp_path: Path) -> None:
    assert sum("make_batch(), which is finite" in each for each in messages("G201", body, HIGH, tmp_path)) == count
