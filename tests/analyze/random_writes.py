"""Random small forwards that make views and copies of a tensor and write into them in place."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import torch

SIZE = 4
_START = "d = torch.sigmoid(40 * self.fc(x)).detach()"
_VIEWS = (
    *("{a}[1:]", "{a}[:, ::2]", "{a}[..., 1:]", "{a}[None]", "{a}[0]", "{a}.t()", "{a}.mT", "{a}.permute(1, 0)"),
    *("{a}.unfold(0, 2, 1)", "{a}.unfold(1, 3, 2)", "{a}.diagonal()", "torch.diagonal({a}, 1)", "{a}.select(1, 1)"),
    *("{a}.narrow(0, 1, 2)", "{a}.view(-1)", "{a}.reshape(-1)", "{a}.flatten()", "{a}.ravel()", "{a}.contiguous()"),
    *("{a}.unsqueeze(0)", "{a}.squeeze()", "{a}.movedim(0, 1)", "{a}.unbind(0)[1]", "{a}.split(2)[0]", "{a}.detach()"),
    *("{a}.chunk(2, 1)[1]", "{a}.hsplit(2)[0]", "{a}.unflatten(0, (2, -1))", "{a}.expand(2, *{a}.shape)"),
    *("{a}.as_strided((2, 2), (1, 2))", "{a}.as_strided((2, 2), (1, 2), {place})", "torch.as_strided({a}, (3,), (1,))"),
    *("torch.view_as_real(torch.view_as_complex({a}.reshape(-1, 2).contiguous()))", "{a}.expand_as({a})"),
    *("{a}.clone()", "{a} + 0", "{a}.roll(1, 0)", "{a}.flip(0)", "{a}.repeat(1, 1)", "{a}.index_select(0, first)"),
)
_WRITES = (
    *("{a}.fill_({c})", "{a}.zero_()", "{a}[...] = {c}", "{a}[0] = {c}", "{a}[{a} > 0.3] = {c}", "{a}.uniform_(2, 3)"),
    *("{a}.add_({c})", "{a}.mul_({c})", "{a}.sub_({c})", "{a}.div_({c})", "{a} += {c}", "{a} *= {c}", "{a}.neg_()"),
    *("{a}.copy_({a} + {c})", "{a}.copy_({b})", "{a}.add_({b})", "{a}.mul_({b})", "torch.mul({a}, {b}, out={a})"),
    *("torch.add({a}, {c}, out={a})", "torch.neg({a}, out={a})", "{a}.lerp_({a} + {c}, 0.5)", "{a}.sub_({a}.mean())"),
    *("{a}.clamp_(min={c})", "{a}.clamp_max_({c})", "{a}.masked_fill_({a} > 0.5, {c})", "{a}.relu_()", "{a}.abs_()"),
    *("{a}.sigmoid_()", "{a}.exp_()", "{a}.square_()", "{a}.tanh_()", "{a}.floor_()", "{a}.index_fill_(0, first, {c})"),
    *("F.relu({a}, inplace=True)", "F.dropout({a}, 0.5, True, True)", "{a}.addcmul_({a}, {a}, value={c})"),
    *("{a}.scatter_(0, torch.zeros_like({a}).long(), {c})", "{a}.index_add_(0, first, {a}[:1] + {c})"),
    *("{a}.index_copy_(0, first, {a}[:1] * {c})", "torch._foreach_add_([{a}], {c})", "{a}.fill_diagonal_({c})"),
    *("{a}.masked_scatter_({a} > 0, {b}.reshape(-1).repeat(40))", "{a}.data.add_({c})"),
    *("{a}.t_()", "{a}.unsqueeze_(0)", "{a}.squeeze_()", "{a}.transpose_(0, 1)"),
)
_NUMBERS = (-5, 3, 0.5, 7, -0.5)


class Writes:
    """A forward that returns every tensor that it named, times one.

    Attributes:
        text: the model file.
        names: the tensors that the forward returns, in order.
        last: the line that returns them, from 1.
    """

    def __init__(self, seed: int) -> None:
        drawn = random.Random(seed)
        lines, names = [_START, "first = torch.tensor([0])"], ["d"]
        for _ in range(drawn.randint(3, 7)):
            words = {"a": drawn.choice(names), "b": drawn.choice(names), "c": drawn.choice(_NUMBERS)}
            if drawn.random() < 0.5:
                name = f"v{len(names)}"
                line = f"{name} = {drawn.choice(_VIEWS).format(place=drawn.randint(0, 5), **words)}"
            else:
                name, line = "", drawn.choice(_WRITES).format(**words)
            if _runs([*lines, line]):
                lines.append(line)
                names += [name] * bool(name)
        self.names = names
        lines.append(f"return {', '.join(f'{name} * 1' for name in names)},")
        self.text = "\n".join([_HEAD, *(f"        {line}" for line in lines), _TAIL])
        self.last = self.text.splitlines().index(f"        {lines[-1]}") + 1

    def outputs(self) -> tuple[torch.Tensor, ...]:
        """What the forward gives for its batch."""
        names: dict[str, Any] = {}
        exec(self.text, names)
        with torch.no_grad():
            found = names["make_model"]()(names["make_batch"]())
        return tuple(found)


_HEAD = f"""\
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear({SIZE}, {SIZE})

    def forward(self, x):"""
_TAIL = f"""

def make_model():
    return Net()


def make_batch():
    torch.manual_seed(1)
    return torch.randn({SIZE}, {SIZE})


def loss_fn(output, batch):
    return output[0].mean()
"""


def _runs(lines: list[str]) -> bool:
    """Whether a forward of such lines runs at all, as one that writes into an expanded tensor does not."""
    names: dict[str, Any] = {}
    body = "\n".join(f"        {line}" for line in [*lines, "return d"])
    exec(f"{_HEAD}\n{body}\n{_TAIL}", names)
    forward: Callable[..., Any] = names["make_model"]()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")
            forward(names["make_batch"]())
    except (RuntimeError, IndexError, TypeError, ValueError, UserWarning):
        return False
    return True
