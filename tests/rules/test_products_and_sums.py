"""Powers written as products, correlations of normalised numbers, tables of frequencies, kernels that fade."""

from __future__ import annotations

from pathlib import Path

import pytest
from amptune_rules.graph._examples import model_file

from amptune.core.finding import Severity
from tests.rules.test_written_otherwise import found


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("h = self.fc(x)\nreturn h + 0.044715 * h * h * h", 1),
        ("h = self.fc(x)\nreturn h * h * h", 1),
        ("h = self.fc(x).float()\nreturn h * h * h", 0),
        ("h = torch.tanh(self.fc(x))\nreturn h * h * h", 0),
        ("h = self.fc(x)\nreturn h * self.fc(x + 1) * self.fc(x + 2)", 0),
    ],
)
def test_a_cube_as_a_product(body: str, count: int, tmp_path: Path) -> None:
    told = found("G215", model_file(body), tmp_path)
    assert len(told) == count
    assert all("|x| = 113.6" in each.message or "|x| = 40.3" in each.message for each in told)


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("return torch.softmax(self.fc(x) / 1e-3, -1)", 1),
        ("return torch.softmax(self.fc(x) / 0.07, -1)", 0),
        ("return self.fc(x) * 900", 0),
        ("return torch.softmax(self.fc(x).float() / 1e-3, -1)", 0),
        ("return torch.softmax(torch.tanh(self.fc(x)) / 1e-3, -1)", 0),
        ("return torch.sigmoid(self.fc(x) / 1e-3) * x", 0),
    ],
)
def test_a_low_temperature_of_what_a_layer_gives(body: str, count: int, tmp_path: Path) -> None:
    assert [each.severity for each in found("G201", model_file(body), tmp_path)] == [Severity.INFO] * count


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        ("torch.randint(0, 256, (32, 20000)).float()", 1),
        ("60.0 * (torch.arange(640000).view(32, 20000) % 50 == 0)", 0),
        ("60.0 * (torch.arange(640000).view(32, 20000) % 2 == 0)", 1),
    ],
)
def test_a_sum_of_products_goes_by_how_much_of_the_batch_is_zero(batch: str, count: int, tmp_path: Path) -> None:
    init = "self.fc = nn.Linear(64, 64)\nself.words = nn.Parameter(torch.rand(20000, 64))"
    told = found("G201", model_file("return self.fc(x @ self.words)", init=init, batch=batch), tmp_path)
    assert len([each for each in told if "adds up to" in each.message]) == count


@pytest.mark.parametrize(
    ("cast", "count"),
    [
        ("x / 86400.0", 0),
        ("x - 1.7e9", 0),
        ("self.fc(x).clamp(-1e6, 1e6)", 0),
        ("86400.0 / x", 1),
        ("(x > 0).float() * -1e9", 1),
        ("torch.where(x > 0, 0.0, -1e9)", 1),
    ],
)
def test_a_large_number_of_what_is_cast_to_fp16(cast: str, count: int, tmp_path: Path) -> None:
    source = model_file(f"small = ({cast}).half()\nreturn self.fc(small.sin().float()) + small * self.gain.half()",
                        init="self.fc = nn.Linear(64, 64)\nself.gain = nn.Parameter(torch.ones(64))")  # fmt: skip
    told = [each for each in found("G201", source, tmp_path) if "made with" in each.message]
    assert len({each.location.line for each in told}) == count


@pytest.mark.parametrize(
    ("powers", "count"),
    [
        ("self.fc(x).softmax(-1) ** 2", 0),
        ("self.fc(x).softmax(-1).square()", 0),
        ("self.fc(x).softmax(-1).pow(1 / 0.07)", 1),
        ("self.fc(x).softmax(0) ** 2", 1),
        ("F.relu(self.fc(x)) ** 2", 1),
    ],
)
def test_sharpened_shares_add_up_to_more_than_zero(powers: str, count: int, tmp_path: Path) -> None:
    body = f"p = {powers}\nreturn p / p.sum(-1, keepdim=True)"
    assert len(found("G205", model_file(body), tmp_path)) == count


@pytest.mark.parametrize(
    ("guard", "count"), [("d[torch.isinf(d)] = 0.0", 0), ("d = d.masked_fill(d.isinf(), 0)", 0), ("d = d * 1", 1)]
)
def test_degrees_of_zero_that_are_replaced(guard: str, count: int, tmp_path: Path) -> None:
    body = f"d = a.sum(-1).pow(-0.5)\n{guard}\nreturn d[:, None] * a * d @ self.fc(x)"
    source = model_file(body, takes="x, a", batch="(torch.randn(64, 64), (torch.rand(64, 64) > 0.9).float())")
    assert len(found("G206", source, tmp_path)) == count


@pytest.mark.parametrize(("rows", "count"), [(70000, 1), (4096, 0)])
def test_a_correlation_over_more_places_than_fp16_counts(rows: int, count: int, tmp_path: Path) -> None:
    body = "a, b = self.norm(self.fc(x)), self.norm(self.fc(x + 1))\nreturn a.t() @ b / a.shape[0]"
    init = "self.fc = nn.Linear(64, 64)\nself.norm = nn.BatchNorm1d(64, affine=False)"
    told = found("G207", model_file(body, init=init, batch=f"torch.randn({rows}, 64)"), tmp_path)
    assert len(told) == count


@pytest.mark.parametrize(("sigma", "cast", "count"), [(10, "", 1), (0.01, "", 0), (10, ".float()", 1)])
def test_angles_by_a_table_of_frequencies(sigma: float, cast: str, count: int, tmp_path: Path) -> None:
    """A cast after the product comes too late: the product has rounded them."""
    body = f"angle = 6.28 * x @ self.table\nreturn self.fc(torch.cat([angle{cast}.sin(), angle{cast}.cos()], -1))"
    init = f"self.fc = nn.Linear(128, 64)\nself.register_buffer('table', {sigma} * torch.ones(64, 64))"
    assert len(found("G219", model_file(body, init=init), tmp_path)) == count


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("d = (q[:, None] - s[None]).pow(2).sum(-1)", 1),
        ("d = torch.cdist(q, s)", 1),
        ("d = (q[:, None] - q[None]).pow(2).sum(-1)", 0),
        ("d = (q[:, None] - s[None]).pow(2).sum(-1)\nd = d - d.amin(1, keepdim=True)", 0),
    ],
)
def test_a_kernel_that_may_be_zero_everywhere(body: str, count: int, tmp_path: Path) -> None:
    lines = ["q, s = self.fc(x).float(), self.fc(x + 1).float()", *body.split("\n")]
    source = model_file("\n".join([*lines, "w = torch.exp(-d / 0.02)", "return (w @ s) / w.sum(1, keepdim=True)"]))
    assert len(found("G205", source, tmp_path)) == count


@pytest.mark.parametrize(("op", "count"), [("torch.i0(k)", 1), ("torch.special.i0e(k)", 0)])
def test_a_bessel_function_is_an_exponential(op: str, count: int, tmp_path: Path) -> None:
    told = found("G203", model_file(f"k = F.softplus(self.fc(x).float())\nreturn torch.log({op})"), tmp_path)
    assert len(told) == count
    assert all("i0e" in each.message for each in told)


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("h = self.fc(x).float()\nw = torch.exp(h).clamp(max=100).detach()\nreturn w * h", 0),
        ("h = self.fc(x).float()\nreturn torch.exp(h).clamp(max=100) * h", 1),
        ("h = self.fc(x).float()\nreturn torch.log(-torch.expm1(h[:, 1:] - h[:, :-1]))", 0),
        ("h = self.fc(x).float()\nreturn torch.log(torch.expm1(h))", 1),
        ("h = self.fc(x).float()\nreturn h * torch.exp(h - h.square().sum(-1, keepdim=True) - h.amax(-1, True))", 0),
    ],
)
def test_exponentials_that_end_somewhere(body: str, count: int, tmp_path: Path) -> None:
    assert len(found("G203", model_file(body), tmp_path)) == count
