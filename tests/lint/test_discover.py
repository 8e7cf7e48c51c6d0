"""Which files are found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from amptune.lint.discover import Discovery


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a.py", "b.pyi", "c.ipynb", "d.json", "e.txt", "pkg/f.py", "pkg/sub/g.py", "build/h.py", ".venv/i.py",
                 "env/pyvenv.cfg", "env/j.py", "pkg/.#k.py"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find(tree: Path, *paths: str, exclude: tuple[str, ...] = (), gitignore: bool = True) -> list[str]:
    discovery = Discovery(tree, exclude, gitignore)
    found = discovery.find(paths or (".",))
    assert discovery.errors == []
    return [path.replace(os.sep, "/") for path in found]


ALL = ["a.py", "b.pyi", "build/h.py", "c.ipynb", "d.json", "pkg/f.py", "pkg/sub/g.py"]


def test_folders(tree: Path) -> None:
    assert find(tree) == ALL
    assert find(tree, "pkg", "pkg/f.py", "./pkg/../a.py") == ["a.py", "pkg/f.py", "pkg/sub/g.py"]
    assert find(tree, str(tree / "pkg")) == [str(tree / "pkg/f.py"), str(tree / "pkg/sub/g.py")]


def test_a_named_file_is_taken_whatever_its_suffix(tree: Path) -> None:
    assert find(tree, "e.txt") == ["e.txt"]


def test_exclude(tree: Path) -> None:
    assert find(tree, exclude=("build/", "*.json", "pkg/sub")) == ["a.py", "b.pyi", "c.ipynb", "pkg/f.py"]
    assert find(tree, "build/h.py", exclude=("build/",)) == []


def test_gitignore(tree: Path) -> None:
    (tree / ".git").mkdir()
    (tree / ".gitignore").write_text("build/\n*.json\n!d.json\n/pkg/*\n!/pkg/f.py\n")
    assert find(tree) == ["a.py", "b.pyi", "c.ipynb", "d.json", "pkg/f.py"]
    assert find(tree, gitignore=False) == ALL
    (tree / "pkg/.gitignore").write_text("f.py\n")
    assert "pkg/f.py" not in find(tree)


def test_gitignore_of_the_folders_above(tree: Path) -> None:
    (tree / ".git").mkdir()
    (tree / ".gitignore").write_text("sub/\n")
    assert find(tree, "pkg") == ["pkg/f.py"]
    # what is named is linted although it is ignored
    assert find(tree, "pkg/sub") == ["pkg/sub/g.py"]


def test_links(tree: Path) -> None:
    (tree / "pkg/loop").symlink_to(tree)
    (tree / "pkg/link.py").symlink_to(tree / "a.py")
    assert find(tree, "pkg") == ["pkg/f.py", "pkg/link.py", "pkg/sub/g.py"]


def test_what_is_not_there(tree: Path) -> None:
    (tree / "self.py").symlink_to(tree / "self.py")
    discovery = Discovery(tree)
    assert discovery.find(("missing.py", "self.py", "a.py")) == ["a.py"]
    assert [error.path for error in discovery.errors] == ["missing.py", "self.py"]
    assert all(error.message for error in discovery.errors)


def test_an_unreadable_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    discovery = Discovery(tree)
    assert discovery.find(("pkg",)) == ["pkg/f.py"]
    assert [(error.path, error.message) for error in discovery.errors] == [("pkg/sub", "Permission denied")]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_pipes_are_left_alone_and_links_to_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    os.mkfifo(tmp_path / "pipe.py")
    os.symlink("pipe.py", tmp_path / "link_to_pipe.py")
    os.symlink("a.py", tmp_path / "link.py")
    os.symlink("nowhere", tmp_path / "dangling.py")
    found = Discovery(tmp_path).find([str(tmp_path)])
    assert [Path(file).name for file in found] == ["a.py", "dangling.py", "link.py"]
