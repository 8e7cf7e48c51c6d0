"""Large models from the command line: processor seconds (wall time on an idle machine is no more) and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.full
ROOT = Path(__file__).resolve().parents[2]
LLAMA = """\
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def make_model():
    return LlamaForCausalLM(LlamaConfig(hidden_size={width}, intermediate_size={inner}, num_hidden_layers={layers},
                                        num_attention_heads={heads}, num_key_value_heads=8, vocab_size=128256))


def make_batch():
    ids = torch.randint(0, 128256, (1, 2048))
    return {{"input_ids": ids, "labels": ids}}
"""


MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(code, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20)
"""
"""Run in a small process of its own: Linux counts what the forking process held as the child's largest memory."""


def spent(path: Path, *arguments: str) -> tuple[float, float]:
    """Processor seconds and GiB of one run of analyze, that of its children included."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'rules'}"}
    analyze = [sys.executable, "-m", "amptune", "analyze", path.name, "--gpu", "h100", "--fail-on", "never"]
    told = subprocess.run(
        [sys.executable, "-c", MEASURED, *analyze, *arguments],
        cwd=path.parent, env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    code, seconds, memory = told.stdout.split()
    assert code == "0"
    return float(seconds), float(memory)


@pytest.mark.parametrize(
    ("width", "inner", "layers", "heads", "seconds", "gib"),
    [(4096, 14336, 32, 32, 10, 1.5), (16384, 53248, 126, 128, 40, 3.0)],
    ids=["8B", "405B"],
)
def test_llama(width: int, inner: int, layers: int, heads: int, seconds: float, gib: float, tmp_path: Path) -> None:
    path = tmp_path / "llama.py"
    path.write_text(LLAMA.format(width=width, inner=inner, layers=layers, heads=heads))
    taken, memory = min(spent(path) for _ in range(2))  # a busy machine inflates processor time as well
    assert memory < gib
    assert taken < seconds


def test_the_page_of_a_large_model_costs_little_more(tmp_path: Path) -> None:
    path = tmp_path / "llama.py"
    path.write_text(LLAMA.format(width=4096, inner=14336, layers=32, heads=32))
    taken, _ = spent(path, "--html", "page.html")
    assert taken < 14
    assert (tmp_path / "page.html").stat().st_size < 3_000_000
