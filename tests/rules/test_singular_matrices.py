"""Gram matrices that are singular by their shape (G205, G206), and shares by distances to learnt centres (G205)."""

from __future__ import annotations

from pathlib import Path

import pytest
from amptune_rules.graph._examples import model_file

from tests.rules.test_written_otherwise import found

INIT = "self.fc = nn.Linear(64, 64)\nself.register_buffer('eye', torch.eye(64))"
ALONE = "y = self.fc(x).float()\nwith torch.autocast(x.device.type, enabled=False):"

NEAR = "(y[:, None] - self.seats).square().sum(-1)"


@pytest.mark.parametrize(
    ("code", "body", "count"),
    [
        ("G206", f"{ALONE}\n    return torch.linalg.cholesky(y.T @ y / 31)", 1),
        ("G206", f"{ALONE}\n    z = y - y.mean(0)\n    return torch.linalg.cholesky(0.1 * torch.mm(z.t(), z))", 1),
        ("G205", f"{ALONE}\n    k = y.transpose(0, 1).matmul(y)\n    return torch.linalg.solve(k, x.T)", 1),
        ("G205", f"{ALONE}\n    return x @ torch.linalg.inv(y.T @ y)", 1),
        ("G206", f"{ALONE}\n    return torch.linalg.cholesky(y.T @ y / 31 + 1e-2 * self.eye)", 0),
        ("G206", f"{ALONE}\n    return torch.linalg.cholesky(y @ y.T / 64)", 0),
        ("G205", f"{ALONE}\n    return torch.linalg.inv(y @ y.T) @ x", 0),
        ("G206", f"{ALONE}\n    z = torch.tanh(y)\n    return torch.linalg.cholesky(z.T @ (y + z))", 0),
    ],
)
def test_a_matrix_of_too_few_rows(code: str, body: str, count: int, tmp_path: Path) -> None:
    told = found(code, model_file(body, init=INIT), tmp_path)
    assert len([each for each in told if "rank" in each.evidence]) == count


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (f"w = torch.exp(-{NEAR})\nreturn w / w.sum(1, keepdim=True)", 1),
        ("d = torch.cdist(y, self.seats.float())\nw = (-0.5 * d**2).exp()\nreturn w / w.sum(1, keepdim=True)", 1),
        ("w = torch.exp(-(x[:, None] - self.seats).pow(2).sum(2) / 4)\nreturn w / torch.sum(w, 1, keepdim=True)", 1),
        (f"w = torch.softmax(-{NEAR}, 1)\nreturn w / w.sum(1, keepdim=True)", 0),
        (f"w = torch.exp(-{NEAR})\nreturn w / (w.sum(1, keepdim=True) + 1e-6)", 0),
        (f"d = {NEAR}\nw = torch.exp(d.amin(1, keepdim=True) - d)\nreturn w / w.sum(1, keepdim=True)", 0),
        (f"w = torch.exp(-{NEAR}.tanh())\nreturn w / w.sum(1, keepdim=True)", 0),
    ],
)
def test_shares_by_distances_to_learnt_centres(body: str, count: int, tmp_path: Path) -> None:
    init = "self.fc = nn.Linear(64, 64)\nself.seats = nn.Parameter(torch.randn(8, 64))"
    assert len(found("G205", model_file(f"y = self.fc(x).float()\n{body}", init=init), tmp_path)) == count


@pytest.mark.parametrize(
    ("body", "severities"),
    [
        ("c = h.T @ h / 31\nreturn torch.linalg.eigvalsh(c).log()", ["WARNING"]),
        (
            "c = self.fc.weight[:48] @ (h.T @ h) @ self.fc.weight[:48].T\nreturn torch.linalg.eigh(c)[0].log()",
            ["WARNING"],
        ),
        (
            "c = self.fc.weight[:24] @ (h.T @ h) @ self.fc.weight[:24].T\nreturn torch.linalg.eigvalsh(c).log()",
            ["INFO"],
        ),
        ("c = h @ h.T\nreturn torch.linalg.eigvalsh(c).log()", ["INFO"]),
        ("c = (h.T @ h).reshape(16, 256)\nreturn torch.linalg.svdvals(c).log()", ["INFO"]),
        ("c = h.T @ h + 1e-3 * torch.eye(64)\nreturn torch.linalg.eigvalsh(c).log()", []),
    ],
)
def test_logarithms_of_eigenvalues_that_are_zero_by_shape(body: str, severities: list[str], tmp_path: Path) -> None:
    told = found("G204", model_file(f"h = self.fc(x).float()\n{body}"), tmp_path)
    assert [each.severity.name for each in told] == severities
