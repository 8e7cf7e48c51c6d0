"""Builds the model files that the examples of graph rules are."""

from __future__ import annotations

import textwrap

_FILE = """\
import torch
import torch.nn.functional as F
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
{init}

    def forward(self, {takes}):
{forward}


def make_model():
    return Model(){cast}


def make_batch():
    return {batch}, None


def loss_fn(output, batch):
    return {loss}
"""


def model_file(
    forward: str, *, init: str = "self.fc = nn.Linear(64, 64)", batch: str = "torch.randn(32, 64)",
    loss: str = "output.float().sum()", cast: str = "", takes: str = "x",
) -> str:  # fmt: skip
    """A whole model file around the lines of ``__init__`` and ``forward``.

    ``cast`` is written after ``Model()``; ``takes`` names what the forward takes.
    """
    return _FILE.format(
        init=textwrap.indent(textwrap.dedent(init).strip(), " " * 8),
        forward=textwrap.indent(textwrap.dedent(forward).strip(), " " * 8),
        batch=batch,
        loss=loss,
        cast=cast,
        takes=takes,
    )
