"""How fast ``amptune lint`` is, beside TorchFix, on the installed transformers and accelerate packages.

    make bench-lint
    python tests/benchmarks/lint_speed.py --repeats 3 --accelerate FOLDER --torchfix PATH/bin/torchfix

A cold run of a whole package (no cache, byte code of ours there), a warm one, a pre-commit run on ten files, and
TorchFix and ``amptune lint`` side by side on accelerate. Every time is given as wall clock and as processor time of all
processes together: on a busy machine only the second says something. Without ``--torchfix`` it is looked for on the
path, and left out with a line in the report where it is not. Writes tests/benchmarks/reports/lint_speed.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

REPORT = Path(__file__).parent / "reports/lint_speed.md"
TEN_FILES = (
    "trainer_callback.py", "optimization.py", "models/t5/modeling_t5.py", "models/llama/modeling_llama.py",
    "models/gpt2/modeling_gpt2.py", "models/vit/modeling_vit.py", "integrations/deepspeed.py",
    "training_args_seq2seq.py", "data/data_collator.py", "modeling_outputs.py",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Times:
    """Wall clock and processor seconds of the runs of one command."""

    wall: tuple[float, ...]
    processor: tuple[float, ...]


class Bench:
    """Runs commands in a folder and keeps the rows of the report."""

    def __init__(self, repeats: int, environment: dict[str, str]) -> None:
        self.repeats = repeats
        self.environment = environment
        self.rows: list[str] = []

    def row(self, name: str, command: Sequence[str], folder: Path, lines: int, repeats: int = 0) -> Times:
        """Run a command several times and keep its row."""
        times = measure(command, folder, self.environment, repeats or self.repeats)
        rate = lines / statistics.median(times.processor)
        self.rows.append(f"| {name} | {shown(times.wall)} | {shown(times.processor)} | {rate:,.0f} |")
        print(self.rows[-1], flush=True)
        return times


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="package to lint (default: the installed transformers)")
    parser.add_argument(
        "--accelerate", type=Path, help="package for the comparison (default: the installed accelerate)"
    )
    parser.add_argument("--torchfix", default=shutil.which("torchfix"), help="the torchfix command")
    args = parser.parse_args(argv)
    folder = args.folder or package("transformers")
    if folder is None:
        raise SystemExit("transformers is not installed: name another folder with --folder")
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as cache:
        # Byte code is there, as in an installed package; the first run writes it.
        environment = {**os.environ, "XDG_CACHE_HOME": cache, "PYTHONPYCACHEPREFIX": f"{cache}/bytecode"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        bench = Bench(args.repeats, environment)
        sections = [own_speed(bench, folder), beside_torchfix(bench, args.accelerate, args.torchfix)]
    text = "\n".join([*header(args.repeats, before), *sections])
    REPORT.write_text(text)
    print(f"written to {REPORT}")
    return 0


def own_speed(bench: Bench, folder: Path) -> str:
    """Cold, warm and on ten files."""
    lines, files = count(folder)
    lint = [sys.executable, "-m", "amptune", "lint", "--exit-zero", "--statistics"]
    measure([*lint, "--no-cache", os.devnull], folder.parent, bench.environment, 1)
    bench.row("cold, no cache", [*lint, "--no-cache", folder.name], folder.parent, lines)
    measure([*lint, folder.name], folder.parent, bench.environment, 1)
    bench.row("warm", [*lint, folder.name], folder.parent, lines, bench.repeats * 2)
    ten = [name for name in TEN_FILES if (folder / name).is_file()]
    if ten:
        some = sum((folder / name).read_bytes().count(b"\n") for name in ten)
        bench.row(f"{len(ten)} files, no cache", [*lint, "--no-cache", *ten], folder, some, bench.repeats * 3)
        measure([*lint, *ten], folder, bench.environment, 1)
        bench.row(f"{len(ten)} files, warm", [*lint, *ten], folder, some, bench.repeats * 3)
    return table(f"{folder.name} {version(folder.name)}: {files} files, {lines:,} lines", bench)


def beside_torchfix(bench: Bench, folder: Path | None, torchfix: str | None) -> str:
    """Both linters on accelerate, one after the other, each as it is started by default."""
    folder = folder or package("accelerate")
    if folder is None or torchfix is None:
        missing = "accelerate" if folder is None else "TorchFix"
        return f"## Beside TorchFix\n\nNot measured: {missing} was not found.\n"
    lines, files = count(folder)
    lint = [sys.executable, "-m", "amptune", "lint", "--exit-zero", "--statistics", "--no-cache", folder.name]
    ours = bench.row("amptune lint", lint, folder.parent, lines)
    theirs = bench.row("torchfix", [torchfix, folder.name], folder.parent, lines, 1)
    ratio = statistics.median(theirs.processor) / statistics.median(ours.processor)
    title = f"Beside TorchFix {torchfix_version(torchfix)}, accelerate: {files} files, {lines:,} lines"
    return table(title, bench) + f"\n{ratio:,.0f} times TorchFix's lines per second of processor time.\n"


def table(title: str, bench: Bench) -> str:
    """A section of the report with the rows so far, which are taken."""
    rows, bench.rows = bench.rows, []
    head = ["| run | wall s: median (least to most) | processor s | lines per processor second |", "|---|---|---|---|"]
    return "\n".join([f"## {title}", "", *head, *rows, ""])


def header(repeats: int, before: tuple[float, float, float]) -> list[str]:
    """What was measured on which machine, and how busy that was."""
    after = os.getloadavg()
    load = f"load average {before[0]:.1f} at the start and {after[0]:.1f} at the end"
    return [
        "# Speed of `amptune lint`", "",
        "Written by `make bench-lint` (tests/benchmarks/lint_speed.py).", "",
        "Processor seconds: user and system time of all processes of a run; alone on the machine, long runs take that",
        "divided by the cores.", "",
        f"- machine: {processor()}, {len(os.sched_getaffinity(0))} cores for this run, {platform.system()}",
        f"- versions: Python {platform.python_version()}, amptune {version('amptune')}",
        f"- {repeats} repeats of long runs, twice or three times as many of short ones, one of TorchFix",
        f"- {load}: wall clock times are longer than on an idle machine by that much", "",
    ]  # fmt: skip


def measure(command: Sequence[str], folder: Path, environment: dict[str, str], repeats: int) -> Times:
    """Times of a command, start-up of the process included."""
    wall, processor_seconds = [], []
    for _ in range(repeats):
        used, start = _processor_seconds(), time.perf_counter()
        subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        )
        wall.append(time.perf_counter() - start)
        processor_seconds.append(_processor_seconds() - used)
    return Times(tuple(wall), tuple(processor_seconds))


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def shown(times: Sequence[float]) -> str:
    """The median, and the range where there are several."""
    median = f"{statistics.median(times):.2f}"
    return median if len(times) == 1 else f"{median} ({min(times):.2f} to {max(times):.2f})"


def count(folder: Path) -> tuple[int, int]:
    """Lines and files of Python under a folder."""
    files = list(folder.rglob("*.py"))
    return sum(path.read_bytes().count(b"\n") for path in files), len(files)


def package(name: str) -> Path | None:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def version(name: str) -> str:
    """The version of an installed distribution; "" when it is not one."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def torchfix_version(command: str) -> str:
    """What ``torchfix --version`` says."""
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    raise SystemExit(main())
