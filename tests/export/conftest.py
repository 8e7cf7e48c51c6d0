from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from amptune.cli import run

from . import plans

Importer = Callable[[Path], ModuleType]


@pytest.fixture
def importer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Importer]:
    """Imports a file by its name from its folder, where what it imports lies too, and forgets all of it after."""
    before = set(sys.modules)
    folders: list[str] = []

    def load(path: Path) -> ModuleType:
        folders.append(str(path.parent))
        monkeypatch.syspath_prepend(str(path.parent))
        importlib.invalidate_caches()
        return importlib.import_module(path.stem)

    yield load
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and str(Path(file).parent) in folders:
            del sys.modules[name]


def export(folder: Path, name: str, target: str, file: str, source: str = plans.MODEL) -> Path:
    """The plan called ``name`` written for ``target`` as ``file``, beside the model."""
    plan_path = plans.write(folder, name, source)
    out = folder / file
    assert run(["export", str(plan_path), "--to", target, "-o", str(out)]) == 0
    return out


_PATCHED: dict[tuple[str, str], dict[str, bytes]] = {}


def with_patched(folder: Path, name: str, source: str = plans.MODEL) -> Path:
    """``net_amptuned.py`` and its runtime beside the plan; returns the plan's path."""
    plan_path = plans.write(folder, name, source)
    if (name, source) not in _PATCHED:
        assert run(["apply", str(plan_path), str(folder / "net.py"), "--out", str(folder)]) == 0
        files = ("net_amptuned.py", "amptune_runtime.py")
        _PATCHED[name, source] = {file: (folder / file).read_bytes() for file in files}
    for file, content in _PATCHED[name, source].items():
        (folder / file).write_bytes(content)
    return plan_path
