from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from amptune.capture import Target, TargetSpec, load_target

HEADER = """
import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn
"""

Load = Callable[..., Target]


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Of the tests here, all."""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model file with the usual imports; line 1 of the text is line 8 of the file."""

    def writer(text: str, name: str = "model.py", header: str = HEADER) -> Path:
        path = tmp_path / name
        path.write_text(header + textwrap.dedent(text))
        return path

    return writer


@pytest.fixture
def load(write: Callable[..., Path]) -> Load:
    """Loads a target from the text of its file."""

    def loader(
        text: str, *, name: str = "", inputs: tuple[str, ...] = (), arguments: Mapping[str, str] | None = None
    ) -> Target:
        path = write(text)
        return load_target(TargetSpec(f"{path}:{name}" if name else str(path), arguments or {}, inputs))

    return loader
