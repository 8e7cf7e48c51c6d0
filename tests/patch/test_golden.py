"""One file for each behaviour. AMPTUNE_UPDATE_GOLDEN=1 writes the outputs anew, for a person to read in the diff."""

import os

import pytest

from amptune import __version__
from amptune.patch.check import check_patched
from amptune.patch.rewrite import patch_source, unpatch_source
from tests.patch.cases import HEADER, MARKER, Golden, goldens

ANY_VERSION = "X.Y.Z"
CASES = [pytest.param(golden, id=golden.path.stem) for golden in goldens()]


@pytest.mark.parametrize("golden", CASES)
def test_patched_file_is_as_recorded(golden: Golden):
    patched = patch_source(golden.source, golden.plan, golden.spec)
    shown = patched.replace(__version__, ANY_VERSION)
    if os.environ.get("AMPTUNE_UPDATE_GOLDEN"):
        golden.path.write_text(f"{HEADER}{golden.header}\n{golden.source}{MARKER}{shown}", encoding="utf-8")
    assert shown == golden.patched or os.environ.get("AMPTUNE_UPDATE_GOLDEN")
    check_patched(golden.source, patched, golden.plan, golden.spec)


FORMS = {
    "lf": lambda text: text,
    "crlf": lambda text: text.replace("\n", "\r\n"),
    "bom": lambda text: "\ufeff" + text,
    "no last newline": lambda text: text.rstrip("\n"),
}


@pytest.mark.parametrize("golden", CASES)
@pytest.mark.parametrize("form", FORMS)
def test_line_endings_mark_and_last_line_are_the_users(golden: Golden, form: str):
    source = FORMS[form](golden.source)
    patched = patch_source(source, golden.plan, golden.spec)
    check_patched(source, patched, golden.plan, golden.spec)
    assert patched.startswith("\ufeff") == (form == "bom")
    assert all(line.endswith("\r") == (form == "crlf") for line in patched.split("\n")[:-1])


@pytest.mark.parametrize("golden", CASES)
def test_what_the_patch_leaves_is_the_users_file(golden: Golden):
    back = unpatch_source(patch_source(golden.source, golden.plan, golden.spec))
    if golden.path.stem not in {"constructor_inherited_one_line", "make_model_of_package", "pinned_ops"}:
        assert back == golden.source
