from __future__ import annotations

import inspect
import linecache
import sys
import traceback
from pathlib import Path

import pytest

from amptune.capture.execute import execute_file, private_name, read_source, readable_module
from amptune.errors import TargetError


def test_relative_and_sibling_imports_work(tmp_path: Path) -> None:
    package = tmp_path / "amptune_test_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text("VALUE = 3\n")
    (package / "model.py").write_text("from .parts import VALUE\nimport amptune_test_package.parts as again\n")
    module = execute_file(package / "model.py", (package / "model.py").read_text())
    assert module.VALUE == 3
    (tmp_path / "amptune_test_sibling.py").write_text("VALUE = 4\n")
    (tmp_path / "script.py").write_text("from amptune_test_sibling import VALUE\n")
    assert execute_file(tmp_path / "script.py", (tmp_path / "script.py").read_text()).VALUE == 4


def test_a_file_that_is_made_to_lie_beside_another_runs_as_it_will_there(tmp_path: Path) -> None:
    package, out = tmp_path / "amptune_test_project", tmp_path / "out"
    package.mkdir()
    out.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sizes.txt").write_text("7")
    (package / "parts.py").write_text("VALUE = 3\n")
    (out / "amptune_test_helper.py").write_text("HELP = 5\n")
    text = (
        "from pathlib import Path\nfrom .parts import VALUE\nfrom .amptune_test_helper import HELP\n"
        "SIZE = Path(__file__).with_name('sizes.txt').read_text()\ndef f():\n    return 1\n"
    )
    (out / "model_new.py").write_text(text)
    module = execute_file(out / "model_new.py", text, beside=package / "model.py")
    assert (module.VALUE, module.HELP, module.SIZE) == (3, 5, "7")
    assert inspect.getsource(module.f) == "def f():\n    return 1\n"


def test_tracebacks_and_getsource_show_the_text_that_ran(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text("def f():\n    return 1\n")
    module = execute_file(path, "def f():\n    raise ValueError('replaced')\n")
    assert inspect.getsource(module.f) == "def f():\n    raise ValueError('replaced')\n"
    with pytest.raises(ValueError, match="replaced") as caught:
        module.f()
    frame = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (frame.filename, frame.lineno, frame.line) == (str(path), 2, "raise ValueError('replaced')")
    linecache.checkcache(str(path))
    assert "replaced" in linecache.getline(str(path), 2)


def test_classes_know_their_module(tmp_path: Path) -> None:
    path = tmp_path / "my model.py"
    path.write_text("import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int = 1\n")
    module = execute_file(path, path.read_text())
    assert module.__name__ == private_name(path)
    assert sys.modules[module.A.__module__].A is module.A
    assert readable_module(module.__name__) == "my_model"


def test_a_module_that_fails_is_not_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text("x = 1\nraise RuntimeError('no GPU here')\n")
    with pytest.raises(TargetError, match=r"model.py:2: .*RuntimeError: no GPU here"):
        execute_file(path, read_source(path))
    assert private_name(path) not in sys.modules


def test_the_coding_line_is_obeyed(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_bytes("# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1"))
    assert execute_file(path, read_source(path)).name == "é"
