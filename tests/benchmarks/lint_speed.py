"""How fast ``amptune lint`` is, on the installed transformers package.

Run: ``python -m tests.benchmarks.lint_speed [--repeats 3] [--folder F] [--against "torchfix -j 2"]``. Prints Markdown:
cold and warm runs of a whole package, one run on ten files, lines per second, and, when its command is given, another
linter side by side on the same folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TEN_FILES = (
    "trainer_callback.py", "optimization.py", "models/t5/modeling_t5.py", "models/llama/modeling_llama.py",
    "models/gpt2/modeling_gpt2.py", "models/vit/modeling_vit.py", "integrations/deepspeed.py",
    "training_args_seq2seq.py",
    "data/data_collator.py", "modeling_outputs.py",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="folder to lint (default: the installed transformers package)")
    parser.add_argument("--against", help="another linter's command, run on the same folder, such as 'torchfix -j 2'")
    args = parser.parse_args(argv)
    folder = args.folder or _package("transformers")
    lines, files = count(folder)
    cores = len(os.sched_getaffinity(0))
    print(f"{platform.processor() or platform.machine()}, {cores} cores, Python {platform.python_version()}")
    print(f"{folder.name}: {files} files, {lines} lines\n")
    print("| run | seconds (median) | all runs | lines per second |")
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as cache:
        # Byte code is there, as in an installed package; the first run writes it.
        environment = {**os.environ, "XDG_CACHE_HOME": cache, "PYTHONPYCACHEPREFIX": f"{cache}/bytecode"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        lint = [sys.executable, "-m", "amptune", "lint", "--exit-zero", "--statistics"]
        measure([*lint, "--no-cache", os.devnull], folder.parent, environment)
        row("cold", [*lint, "--no-cache", folder.name], folder.parent, environment, args.repeats, lines)
        measure([*lint, folder.name], folder.parent, environment)
        row("warm", [*lint, folder.name], folder.parent, environment, args.repeats, lines)
        ten = [name for name in TEN_FILES if (folder / name).is_file()]
        if ten:
            some = sum((folder / name).read_bytes().count(b"\n") for name in ten)
            row(f"{len(ten)} files, no cache", [*lint, "--no-cache", *ten], folder, environment, args.repeats * 3, some)
        if args.against:
            row(args.against, [*shlex.split(args.against), folder.name], folder.parent, environment, 1, lines)
    return 0


def row(name: str, command: list[str], folder: Path, environment: dict[str, str], repeats: int, lines: int) -> None:
    """Run a command several times and print its row of the table."""
    seconds = [measure(command, folder, environment) for _ in range(repeats)]
    median = statistics.median(seconds)
    print(
        f"| {name} | {median:.2f} | {', '.join(f'{item:.2f}' for item in seconds)} | {lines / median:,.0f} |",
        flush=True,
    )


def measure(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Wall clock seconds of one run, start-up of the process included."""
    start = time.perf_counter()
    subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )
    return time.perf_counter() - start


def count(folder: Path) -> tuple[int, int]:
    """Lines and files of Python under a folder."""
    files = list(folder.rglob("*.py"))
    return sum(path.read_bytes().count(b"\n") for path in files), len(files)


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is not installed: name another folder with --folder")
    return Path(spec.origin).parent


if __name__ == "__main__":
    raise SystemExit(main())
