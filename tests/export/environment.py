"""Makes the environment that the full export tests load libraries in: ``python tests/export/environment.py FOLDER``.

A virtual environment that sees the packages of the one that runs this, so that torch is not installed twice, and has
the trainers and libraries beside them. They are installed without their dependencies: some ask for a CUDA torch.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NEED_TORCH_TO_BUILD = ("deepspeed",)
ONLY_READ = ("megatron-core", "ms-swift", "torchtitan", "transformer-engine")
"""Their code is looked at, not imported: it needs CUDA, and transformers takes their mere presence for a promise."""


def main(folder: Path) -> None:
    """Create ``folder``, or bring it up to date."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (packages / "outer.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    names = [line for line in (HERE / "requirements.txt").read_text().split("\n") if line and line[0] != "#"]
    install(python, [name for name in names if name not in (*NEED_TORCH_TO_BUILD, *ONLY_READ)])
    install(python, list(NEED_TORCH_TO_BUILD), "--no-build-isolation")
    install(python, list(ONLY_READ), "--upgrade", "--target", str(folder / "sources"))


def install(python: Path, names: list[str], *options: str) -> None:
    """pip, in the versions of constraints.txt."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python), "install", "-q"]
    constraints = ["-c", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, "--no-deps", *options, *constraints, *names], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
