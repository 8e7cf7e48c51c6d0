"""The files in the output folder: the runtime is an exact copy, the diff applies, nothing is half written."""

import shutil
import subprocess
from pathlib import Path

import pytest

from amptune import runtime
from amptune.errors import InputError
from amptune.patch.diff import unified_diff
from amptune.patch.output import patched_files
from amptune.patch.text import read_source
from tests.patch.cases import plan_of, spec_of

SOURCE = """\
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(8, 8)  # größer

    def forward(self, x):
        return self.fc(x)
"""
SITES = {"fc": "bf16"}
PLAN, SPEC = plan_of(SITES), spec_of(SITES, top_class="Net")
APPLIERS = {
    "patch": ["patch", "-p1", "--quiet", "--binary", "-i"],
    "git": ["git", "apply"],
}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    (tmp_path / "src").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_model(project: Path, text: str, encoding: str = "utf-8") -> Path:
    path = project / "src" / "model.py"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("applier", APPLIERS)
@pytest.mark.parametrize("end", ["kept", "cut"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_the_diff_gives_the_patched_file_and_the_runtime(project, applier, newline, end):
    if not shutil.which(applier):
        pytest.skip(f"{applier} is not installed")
    text = SOURCE.replace("\n", newline)
    path = write_model(project, text if end == "kept" else text.rstrip())
    files = patched_files(path, PLAN, SPEC)
    (project / "model.patch").write_bytes(files["model.patch"])
    subprocess.run([*APPLIERS[applier], "model.patch"], check=True, cwd=project)
    assert path.read_bytes() == files["model_amptuned.py"]
    assert (project / "src" / "amptune_runtime.py").read_bytes() == files["amptune_runtime.py"]


def test_the_runtime_is_an_exact_copy(project):
    files = patched_files(write_model(project, SOURCE), PLAN, SPEC)
    assert files["amptune_runtime.py"] == Path(str(runtime.__file__)).read_bytes()


def test_a_runtime_that_lies_there_already_is_not_in_the_diff(project):
    path = write_model(project, SOURCE)
    shutil.copy(str(runtime.__file__), project / "src" / "amptune_runtime.py")
    assert b"amptune_runtime.py" not in patched_files(path, PLAN, SPEC)["model.patch"].split(b"@@")[0]
    assert patched_files(path, PLAN, SPEC)["model.patch"].count(b"\n+++ ") == 1


def test_the_encoding_of_the_file_is_kept(project):
    text = "# -*- coding: latin-1 -*-\n" + SOURCE
    files = patched_files(write_model(project, text, "latin-1"), PLAN, SPEC)
    assert "größer".encode("latin-1") in files["model_amptuned.py"]
    assert "größer".encode("latin-1") in files["model.patch"]


def test_a_byte_order_mark_is_kept_once(project):
    files = patched_files(write_model(project, "\ufeff" + SOURCE), PLAN, SPEC)
    assert files["model_amptuned.py"].startswith(b"\xef\xbb\xbfimport torch")
    assert files["model_amptuned.py"].count(b"\xef\xbb\xbf") == 1


def test_a_patched_file_that_is_patched_again_has_an_empty_diff_of_its_own(project):
    path = write_model(project, SOURCE)
    path.write_bytes(patched_files(path, PLAN, SPEC)["model_amptuned.py"])
    shutil.copy(str(runtime.__file__), project / "src" / "amptune_runtime.py")
    assert patched_files(path, PLAN, SPEC)["model.patch"] == b""


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read"), (b"# -*- coding: nope -*-\n", "is not text"), (b"\xff\xfe", "is not text")],
)
def test_a_file_that_cannot_be_read_is_one_message(project, content, message):
    path = project / "src" / "model.py"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_source(path)


def test_equal_texts_have_no_diff():
    assert unified_diff("a\n", "a\n", "x.py") == ""
