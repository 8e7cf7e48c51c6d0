# ruff: noqa: E501
"""A sixth group: helpers that are called twice, of which one call breaks, and spectra in half."""

from __future__ import annotations

from tests.analyze.numeric_defects import Pair
from tests.analyze.numeric_defects_more import _pair

_SHARES = "def shares(t):\n    e = torch.exp(t){mark}\n    return e / e.sum(-1, keepdim=True)\n"
_UNIT = "def unit(t, eps):\n    return t / (t.abs().mean(-1, keepdim=True) + eps){mark}\n"
_LOGS = "def entropy(t, eps):\n    return -(t * torch.log(t + eps)){mark}\n"
_TURNS = "s = {start}\nfor _ in range(6):\n    s = s * 0.5 + {term}\nreturn torch.exp(s){mark}"
_SPECTRUM = "w = torch.ones(33, 33, dtype=torch.cfloat, device=h.device)\nz = torch.fft.rfft({of})\nz = z @ w{mark}\nreturn torch.fft.irfft(z, n=64)"

CALLS: tuple[Pair, ...] = (
    _pair("a softmax by hand, called stable and not", _SHARES.format(mark="  # <-") + "return shares(h - h.amax(-1, keepdim=True)) + shares(h)",
          _SHARES.format(mark="") + "return shares(h - h.amax(-1, keepdim=True)) + shares(torch.tanh(h))", "G203"),
    _pair("a norm by hand with two eps", _UNIT.format(mark="  # <-") + "return unit(h, 1e-3) + unit(h, 1e-9)",
          _UNIT.format(mark="") + "return unit(h, 1e-3) + unit(h.float(), 1e-9)", "G205", format="fp16"),
    _pair("an entropy by hand of shares in half", _LOGS.format(mark="  # <-") + "p = torch.sigmoid(h)\nreturn entropy(p.float(), 1e-9) + entropy(p, 1e-9)",
          _LOGS.format(mark="") + "p = torch.sigmoid(h)\nreturn entropy(p.float(), 1e-9) + entropy(p, 1e-4)", "G204", format="fp16"),
    _pair("a recurrence that nothing bounds", _TURNS.format(start="torch.tanh(h)", term="h", mark="  # <-"),
          _TURNS.format(start="torch.tanh(h)", term="torch.tanh(h)", mark=""), "G203"),
    _pair("a product of complex halves", _SPECTRUM.format(of="h", mark="  # <-"), _SPECTRUM.format(of="h.float()", mark=""), "G403", format="fp16"),
)  # fmt: skip
