# ruff: noqa: E501
"""A seventh group: kinds that were missed, or named wrongly, when whole models of further kinds were read."""

from __future__ import annotations

from tests.analyze.numeric_defects import Pair
from tests.analyze.numeric_defects_more import _pair

_GROUP_NORM = """\
y = h.view(len(h), 8, -1)
mean = y.mean(-1, keepdim=True)
var = {var}
y = (y - mean) / torch.sqrt(var + {eps}){mark}
return y.view_as(h)"""
_TWO_MEANS = "(y * y).mean(-1, keepdim=True) - mean * mean"
_DEVIATIONS = "((y - mean).float() ** 2).mean(-1, keepdim=True)"
_TWEEDIE = "mu = {mu}\nreturn -t * torch.pow(mu, -0.5) / -0.5 + torch.pow(mu, 0.5) / 0.5{mark}"
_RANKS = "ranks = torch.argsort(torch.argsort(h, 1, descending=True), 1)\nreturn h / torch.log2(ranks.float() + {first}){mark}"

READ: tuple[Pair, ...] = (
    _pair("discounts by ranks that start at zero", _RANKS.format(first="1.0", mark="  # <-"), _RANKS.format(first="2.0", mark=""), "G205"),
    _pair("a discount by the place of the largest", "return h / h.argmax(1, keepdim=True).float()  # <-",
          "return h / (h.argmax(1, keepdim=True).float() + 1)", "G205"),
    _pair("a negative power of relu", _TWEEDIE.format(mu="F.relu(h)", mark="  # <-"), _TWEEDIE.format(mu="F.softplus(h) + 1e-3", mark=""), "G206"),
    _pair("a group norm by two means with a small eps", _GROUP_NORM.format(var=_TWO_MEANS, eps="1e-12", mark="  # <-"),
          _GROUP_NORM.format(var=_DEVIATIONS, eps="1e-6", mark=""), "G206"),
    _pair("a group norm by two means in half", _GROUP_NORM.format(var=_TWO_MEANS, eps="1e-5", mark="  # <-"),
          _GROUP_NORM.format(var=_TWO_MEANS.replace("y * y", "y.float() ** 2").replace("mean * mean", "y.float().mean(-1, keepdim=True) ** 2"), eps="1e-5", mark=""),
          "G206", format="fp16"),
)  # fmt: skip
