"""Terms that are rounded away, and constants that a format does not have, in models that are written in other ways."""

from __future__ import annotations

from pathlib import Path

import pytest
from amptune_rules.graph._examples import model_file

from tests.rules.test_written_otherwise import found

AVERAGES = {
    "in place": "self.slow.mul_(0.99).add_(x.mean(0), alpha=0.01)",
    "towards": "self.slow.lerp_(x.mean(0).to(self.slow.dtype), 0.01)",
    "by a difference": "self.slow.add_(x.mean(0) - self.slow, alpha=0.01)",
    "by a difference, in brackets": "self.slow += 0.01 * (x.mean(0) - self.slow)",
    "less a difference": "self.slow -= 0.01 * (self.slow - x.mean(0))",
    "in a copy": "self.slow.copy_(0.01 * x.mean(0) + self.slow * 0.99)",
    "by a count of steps": "self.slow.add_((x.mean(0) - self.slow) / 100)",
}


@pytest.mark.parametrize("update", AVERAGES.values(), ids=AVERAGES)
@pytest.mark.parametrize(("dtype", "count"), [("bfloat16", 1), ("float32", 0)])
def test_a_running_average_of_short_steps(update: str, dtype: str, count: int, tmp_path: Path) -> None:
    init = f"self.fc = nn.Linear(64, 64)\nself.register_buffer('slow', torch.zeros(64, dtype=torch.{dtype}))"
    source = model_file(f"with torch.no_grad():\n    {update}\nreturn self.fc(x) - self.slow", init=init)
    assert len(found("G220", source, tmp_path)) == count


@pytest.mark.parametrize(("step", "dtype", "count"), [(0.1, "bfloat16", 0), (0.01, "float16", 0), (1e-3, "float16", 1)])
def test_the_step_of_an_average_is_judged_by_its_format(step: float, dtype: str, count: int, tmp_path: Path) -> None:
    init = f"self.fc = nn.Linear(64, 64)\nself.register_buffer('slow', torch.zeros(64, dtype=torch.{dtype}))"
    body = f"with torch.no_grad():\n    self.slow.lerp_(x.mean(0).to(self.slow.dtype), {step})\nreturn self.fc(x)"
    assert len(found("G220", model_file(body, init=init), tmp_path)) == count


@pytest.mark.parametrize(
    ("jitter", "count"),
    [
        ("1e-9 * torch.eye(32, device=x.device)", 1),
        ("torch.diag(torch.full((32,), 1e-10, device=x.device))", 1),
        ("torch.eye(32, device=x.device).mul(1e-8)", 1),
        ("1e-6 * torch.eye(32, device=x.device)", 0),
        ("1e-9 * torch.eye(32, dtype=torch.float64, device=x.device)", 0),
    ],
)
@pytest.mark.parametrize("read", ["torch.linalg.cholesky({})", "torch.linalg.inv({})", "torch.linalg.slogdet({})[1]"])
def test_a_jitter_beside_a_diagonal(jitter: str, read: str, count: int, tmp_path: Path) -> None:
    body = f"""
    h = self.fc(x).float()
    with torch.autocast(x.device.type, enabled=False):
        return {read.format(f"h @ h.t() + {jitter}")}
    """
    assert len(found("G220", model_file(body), tmp_path)) == count


FACTORS = {
    "density * self.far.to(density.dtype)": 1,
    "density * torch.full_like(density, 1e8)": 1,
    "density * density.new_tensor([6e4])": 0,
    "density / self.far.to(density.dtype)": 0,
    "density * torch.finfo(density.dtype).max": 0,
    "density.float() * self.far": 0,
    "density * torch.arange(1024.0, device=x.device).to(density.dtype)[-64:].square()": 0,
}


@pytest.mark.parametrize(("product", "count"), FACTORS.items(), ids=FACTORS)
def test_a_constant_factor_that_fp16_has_as_infinity(product: str, count: int, tmp_path: Path) -> None:
    init = "self.fc = nn.Linear(64, 64)\nself.register_buffer('far', torch.full((64,), 1e10))"
    source = model_file(f"density = self.fc(x).relu()\nreturn torch.exp(-{product})", init=init)
    assert len(found("G201", source, tmp_path)) == count


@pytest.mark.parametrize(
    ("formula", "count"),
    [("log(x)", 1), ("log1p(-x)", 1), ("log(x / 2)", 1), ("log(1 - x)", 1), ("log(1 + x)", 0), ("log1p(x)", 0)],
)
def test_a_logarithm_of_what_numbers_of_the_batch_come_to(formula: str, count: int, tmp_path: Path) -> None:
    source = model_file(f"return self.fc(torch.{formula})", batch="torch.arange(2048.0).view(32, 64) % 5 / 4")
    told = found("G204", source, tmp_path)
    assert len(told) == count
    assert all(each.message.endswith("use a clamp") for each in told)


@pytest.mark.parametrize(
    ("region", "count"), [("torch.autocast(x.device.type, enabled=False)", 0), ("torch.no_grad()", 1)]
)
def test_a_product_that_stays_in_fp32_has_no_rows_in_16_bits(region: str, count: int, tmp_path: Path) -> None:
    source = model_file(
        f"with {region}:\n    h = x @ self.bands\nreturn self.fc(h)",
        init="self.fc = nn.Linear(80, 64)\nself.register_buffer('bands', torch.rand(201, 80))",
        batch="torch.randn(4096, 201)",
    )
    assert len(found("G101", source, tmp_path)) == count


def test_a_finding_about_one_odd_dimension_names_the_other_with_its_size(tmp_path: Path) -> None:
    init = "self.a, self.fc = nn.Linear(64, 1021), nn.Linear(1021, 1003)"
    source = model_file("return self.fc(self.a(x))", init=init, batch="torch.randn(512, 64)")
    (told,) = (each for each in found("G101", source, tmp_path) if each.site == "fc")
    assert told.message.endswith("together with out_features N = 1003 (to 1008)")
    assert told.evidence["together"] == 1003


COUNTERS = {
    "t = t + 0.002": 1,
    "t += 0.002": 1,
    "t = t - 0.0009": 1,
    "t = t - 0.002": 0,
    "t = t + self.step": 1,
    "t = 0.002 + t": 1,
    "t = t + 0.02": 0,
    "t = torch.full_like(t, 1.0 + 0.002 * i)": 0,
    "t = (t.float() + 0.002).to(t.dtype)": 0,
}


@pytest.mark.parametrize(("line", "count"), COUNTERS.items(), ids=COUNTERS)
def test_a_time_that_a_loop_counts(line: str, count: int, tmp_path: Path) -> None:
    body = f"""
    t = torch.ones((), dtype=torch.bfloat16, device=x.device)
    for i in range(6):
        x = x + 0.002 * self.fc(x) * t.float()
        {line}
    return x
    """
    init = "self.fc = nn.Linear(64, 64)\nself.register_buffer('step', torch.tensor(0.002, dtype=torch.bfloat16))"
    assert len(found("G220", model_file(body, init=init), tmp_path)) == count


@pytest.mark.parametrize(
    ("code", "formula", "count"),
    [
        ("G206", "torch.linalg.eigvalsh(c).rsqrt()", 1),
        ("G206", "torch.linalg.eigh(c)[0].sqrt()", 1),
        ("G206", "torch.linalg.eigh(c)[0].clamp(min=1e-6).rsqrt()", 0),
        ("G206", "torch.linalg.eigvalsh(c + 1e-3 * torch.eye(64, device=x.device)).rsqrt()", 0),
        ("G204", "torch.linalg.eigh(c).eigenvalues.log()", 1),
        ("G204", "torch.linalg.svdvals(c).log()", 1),
        ("G204", "(torch.linalg.svdvals(c) + 1e-6).log()", 0),
        ("G205", "1 / torch.linalg.svd(c)[1]", 1),
        ("G205", "1 / torch.linalg.svd(c).S.clamp(min=1e-6)", 0),
        ("G205", "1 / (2 + torch.linalg.svd(c)[0].square())", 0),
    ],
)
def test_functions_of_eigenvalues_and_singular_values(code: str, formula: str, count: int, tmp_path: Path) -> None:
    body = f"""
    h = self.fc(x).float()
    with torch.autocast(x.device.type, enabled=False):
        c = h.t() @ h
        return {formula}
    """
    assert len(found(code, model_file(body), tmp_path)) == count


@pytest.mark.parametrize(
    ("degree", "inverse", "count"),
    [
        ("x.sum(-1)", "deg.pow(-0.5)", 1),
        ("x.sum(-1)", "deg.rsqrt()", 1),
        ("x.mean(-1)", "deg ** -0.5", 1),
        ("x.sum(-1).clamp(min=1)", "deg.pow(-0.5)", 0),
        ("(x + torch.eye(64, device=x.device)).sum(-1)", "deg.pow(-0.5)", 0),
        ("(x + 1).sum(-1)", "deg.pow(-0.5)", 0),
        ("x.sum(-1)", "deg.pow(-0.5).masked_fill(deg == 0, 0.0)", 0),
        ("x.sum(-1)", "torch.nan_to_num(deg.pow(-0.5))", 0),
        ("x.sum(-1)", "deg.sqrt()", 0),
    ],
)
def test_degrees_of_nodes_that_have_no_edge(degree: str, inverse: str, count: int, tmp_path: Path) -> None:
    body = f"deg = {degree}\nreturn ({inverse})[:, None] * self.fc(x)"
    source = model_file(body, batch="(torch.arange(4096.0).view(64, 64) % 7 == 0).float()")
    assert len(found("G206", source, tmp_path)) == count


def test_a_product_of_shares_of_the_batch_is_not_said_to_have_both_signs(tmp_path: Path) -> None:
    source = model_file("return self.fc(x) / x.prod(-1, keepdim=True)", batch="0.05 + 0.2 * torch.rand(32, 64)")
    (told,) = found("G205", source, tmp_path)
    assert "a product of 64 numbers in [0.05" in told.message
    assert "both signs" not in told.message


def test_softplus_of_a_parameter_is_positive(tmp_path: Path) -> None:
    init = "self.fc = nn.Linear(64, 64)\nself.raw = nn.Parameter(torch.ones(()))"
    assert not found("G204", model_file("return self.fc(x) + torch.log(1 + F.softplus(self.raw))", init=init), tmp_path)
    assert not found(
        "G203", model_file("return torch.exp(-self.fc(x).square() * F.softplus(self.raw))", init=init), tmp_path
    )
