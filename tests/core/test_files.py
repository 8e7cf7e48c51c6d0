from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from amptune.core.files import write_all_atomic, write_atomic
from amptune.errors import InputError


def test_content_and_mode_are_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o640)
    write_atomic(path, "new\n")
    assert path.read_text() == "new\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_leaves_every_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("old 1")
    second.write_text("old 2")
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device") as raised:
        write_all_atomic({first: "new 1", second: "new 2"})
    assert str(second) in str(raised.value)
    assert (first.read_text(), second.read_text()) == ("old 1", "old 2")
    assert len(list(tmp_path.iterdir())) == 2, "no temporary file stays behind"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        write_atomic(tmp_path / "nowhere" / "a.txt", "x")
