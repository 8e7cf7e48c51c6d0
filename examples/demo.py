"""``make demo``: lint, analyze and tune examples/gpt.py, as a new user would, and say where everything lies."""

import shutil
import subprocess
import sys
from pathlib import Path

MODEL = "examples/gpt.py"
OUT = Path("amptune-out/gpt")


def amptune(*arguments: str) -> None:
    """Run one command line, shown before it runs."""
    print(f"\n$ amptune {' '.join(arguments)}", flush=True)
    result = subprocess.run([sys.executable, "-m", "amptune", *arguments])
    if result.returncode not in (0, 1):  # 1 = findings, which a demo of an analyzer may well have
        sys.exit(result.returncode)


def main() -> None:
    """The three questions of a person who trains models, one command each."""
    amptune("lint", "examples")
    amptune("analyze", MODEL, "--gpu", "h100")
    shutil.rmtree(OUT, ignore_errors=True)
    amptune("tune", MODEL, "--budget", "12", "--out", str(OUT))


if __name__ == "__main__":
    main()
