"""Writing the output folder: a full disk names the file, says what to do, and leaves what was there."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from amptune.core.files import write_all_atomic
from amptune.core.plan import Plan
from amptune.errors import InputError
from amptune.tune.outputs.emit import CHECKING, GO_ON, Emission, _check_beforehand


def test_a_disk_that_is_full_before_the_check_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes = Path.write_bytes

    def full(path: Path, content: Any) -> int:
        if path.name == "amptune_runtime.py":
            write_bytes(path, content[:1])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a failing write has no name
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    emission = cast("Emission", SimpleNamespace(out=tmp_path, plan=Plan(sites={})))
    files = {"net_amptuned.py": b"one", "amptune_runtime.py": b"two"}
    with pytest.raises(InputError) as raised:
        _check_beforehand(emission, files, "net_amptuned.py", lambda *_: pytest.fail("nothing is checked"))
    assert raised.value.message == f"cannot write {tmp_path}/amptune_runtime.py: No space left on device"
    assert raised.value.hint == GO_ON
    assert not list(tmp_path.iterdir())


def test_what_a_killed_check_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / f"{CHECKING}0abc"
    left.mkdir()
    (left / "net_amptuned.py").write_text("old")
    emission, checked = cast("Emission", SimpleNamespace(out=tmp_path, plan=Plan(sites={}))), list[str]()

    def check(path: Path, _candidate: Any) -> None:
        checked.append(path.read_text())
        assert list(tmp_path.iterdir()) == [path.parent]

    _check_beforehand(emission, {"net_amptuned.py": b"new"}, "net_amptuned.py", check)
    assert checked == ["new"]
    assert not list(tmp_path.iterdir())


def test_files_that_do_not_all_fit_leave_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, calls = os.fsync, list[int]()

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    for name in ("a", "b"):
        (tmp_path / name).write_text("old")
    with pytest.raises(InputError) as raised:
        write_all_atomic({tmp_path / "a": "new", tmp_path / "b": "new"}, GO_ON)
    assert raised.value.message == f"cannot write {tmp_path}/b: No space left on device"
    assert raised.value.hint == GO_ON
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "b": "old"}
