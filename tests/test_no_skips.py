"""``make test-full`` takes no skips."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py").read_text()
SKIPS = """\
import pytest


def test_with_a_reason():
    pytest.skip("no browser")


@pytest.mark.skipif(True, reason="no pipes")
def test_of_another_system():
    pass


@pytest.mark.xfail(reason="known")
def test_known():
    assert False
"""


@pytest.mark.parametrize(("options", "code"), [([], 0), (["--no-skips"], 1)])
def test_a_skip_fails_where_none_is_taken(tmp_path: Path, options: list[str], code: int) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_skips.py").write_text(SKIPS)
    command = [sys.executable, "-m", "pytest", "-rfsE", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir=."]
    done = subprocess.run(
        [*command, *options, "test_skips.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout
    assert ("1 failed, 1 xfailed, 1 error" if options else "2 skipped, 1 xfailed") in done.stdout
    assert "no browser" in done.stdout
    assert "no pipes" in done.stdout


@pytest.mark.parametrize(
    ("there", "missing"),
    [((), " git patch chromium"), (("git", "patch", "google-chrome"), ""), (("git", "chromium"), " patch")],
)
def test_programs_that_are_missing_are_named_before_anything_is_installed(
    tmp_path: Path, there: tuple[str, ...], missing: str
) -> None:
    for name in there:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    make = shutil.which("make")
    assert make
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [make, "-C", str(root), "programs"], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode != 0) == bool(missing)
    assert (f"apt-get install{missing}\n" in done.stdout) == bool(missing)
