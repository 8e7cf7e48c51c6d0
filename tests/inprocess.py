"""The command line in this process: a tenth of the time that a process of its own takes to import torch."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
from pathlib import Path
from unittest import mock

from amptune.cli import run


def amptune(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one command line in ``folder``; what it prints and its exit code. Workers that it starts have one thread."""
    out, err = io.StringIO(), io.StringIO()
    one_thread = mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1"})
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), one_thread:
        code = run(arguments)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
