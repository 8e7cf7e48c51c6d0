"""``amptune lint``, ``rules`` and ``explain`` as a user runs them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from amptune.cli import run
from amptune.lint.runner import Linter

ROOT = Path(__file__).parents[1]
BUG = """\
import torch


def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(x)
        scaler.scale(loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
"""
FIXED = BUG.replace("        torch.nn", "        scaler.unscale_(optimizer)\n        torch.nn")
WARNING = "import torch\n\nscaler = torch.cuda.amp.GradScaler()\n"
CLEAN = "import torch\n\nx = torch.ones(3)\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    (tmp_path / "pyproject.toml").write_text("[tool.amptune]\n")
    return tmp_path


def lint(*arguments: str) -> int:
    return run(["lint", *arguments])


def findings(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str, int]]:
    data = json.loads(capsys.readouterr().out)
    return [(finding["path"], finding["rule"], finding["line"]) for finding in data["findings"]]


def test_clean_code(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "a.py").write_text(CLEAN)
    assert lint() == 0
    assert capsys.readouterr().out == "no findings in 1 file\n"


def test_a_bug_is_shown_with_its_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "sub").mkdir()
    (project / "sub/a.py").write_text(BUG)
    assert lint() == 1
    out, err = capsys.readouterr()
    assert out.startswith("sub/a.py:11:9: error AMP101: gradients are clipped while still multiplied")
    assert "  11 |         torch.nn.utils.clip_grad_norm_" in out
    assert "1 error in 1 file; 1 fixable with --fix" in out
    assert err == ""


def test_nothing_to_lint_is_said(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "notes.txt").write_text("x")
    assert lint() == 0
    out, err = capsys.readouterr()
    assert out == "no findings in 0 files\n"
    assert "no Python, notebook or settings file found in ." in err


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        ((), 0),
        (("--fail-on", "warning"), 1),
        (("--fail-on", "info"), 1),
        (("--fail-on", "never"), 0),
        (("--fail-on", "warning", "--exit-zero"), 0),
        (("--fail-on", "warning", "--ignore", "AMP4"), 0),
        (("--fail-on", "warning", "--select", "AMP1,AMP2"), 0),
        (("--fail-on", "warning", "--select", "AMP401"), 1),
    ],
)
def test_exit_codes_of_a_warning(project: Path, flags: tuple[str, ...], code: int) -> None:
    (project / "a.py").write_text(WARNING)
    assert lint(*flags) == code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--select", "AMP9999"), "no rule is called 'AMP9999'"),
        (("--ignore", "XYZ"), "no rule is called 'XYZ'"),
        (("missing.py",), ""),
        (("--jobs", "-1"), "--jobs -1 is negative"),
        (("--write-baseline",), "--write-baseline needs --baseline"),
        (("--baseline", "none.json"), "cannot read the baseline none.json"),
        (("--config", "none.toml"), "cannot read none.toml"),
        (("--stdin-filename", "a.py", "b.py"), "--stdin-filename reads standard input"),
        (("--format", "xml"), "invalid choice: 'xml'"),
        (("--unknown",), "unrecognized arguments"),
    ],
)
def test_mistakes_exit_2_with_a_message(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    (project / "a.py").write_text(CLEAN)
    assert lint(*arguments) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert "Traceback" not in out + err


def test_settings_are_used(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "pyproject.toml").write_text(
        '[tool.amptune]\nselect = ["AMP4"]\nexclude = ["old/"]\nfail-on = "warning"\n'
        '[tool.amptune.per-file-ignores]\n"tests/*.py" = ["AMP401"]\n'
    )
    for name in ("a.py", "old/b.py", "tests/c.py"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(WARNING + BUG)
    assert lint("--format", "json") == 1
    assert findings(capsys) == [("a.py", "AMP401", 3)]
    assert lint("--format", "json", "--select", "AMP101") == 1
    assert [path for path, _, _ in findings(capsys)] == ["a.py", "tests/c.py"]


def test_an_unknown_key_is_an_error(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "pyproject.toml").write_text("[tool.amptune]\nfail_on = 'error'\n")
    assert lint() == 2
    assert "did you mean 'fail-on'?" in capsys.readouterr().err


def test_bad_files_do_not_hide_the_others(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files: dict[str, bytes] = {
        "good.py": BUG.encode(),
        "syntax.py": b"def f(:\n    autocast\n",
        "python2.py": b"print 'autocast'\n",
        "null.py": b"autocast\x00\n",
        "latin.py": "# autocast \xe9\n".encode("latin-1"),
        "declared.py": "# -*- coding: latin-1 -*-\n# autocast \xe9\n".encode("latin-1"),
        "unknown.py": b"# -*- coding: klingon -*-\n# autocast\n",
        "utf16.py": "x = 1  # autocast\n".encode("utf-16"),
        "bom.py": b"\xef\xbb\xbf" + WARNING.encode(),
        "crlf.py": WARNING.replace("\n", "\r\n").encode(),
        "tabs.py": b"if 1:\n\tautocast = 1\n        x = 2\n",
        "empty.py": b"",
        "deep.py": b"autocast = " + b"(" * 3000 + b")" * 3000,
        "nested.py": b"autocast = " + b"-" * 100_000 + b"1\n",
        "huge.py": b"x = [" + b"'autocast', " * 800_000 + b"]\n",
        "broken.ipynb": b'{"cells": [autocast',
        "broken.json": b'{"fp16": {"enabled": true}',
        "broken.yaml": b"fp16: [true\nmixed_precision: fp16\n",
    }
    for name, data in files.items():
        (project / name).write_bytes(data)
    (project / "loop.py").symlink_to("loop.py")
    (project / "folder").mkdir()
    (project / "folder/back").symlink_to("..")
    assert lint("--format", "json") == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    data = json.loads(out)
    broken = [error["path"] for error in data["errors"]]
    stems = ("syntax", "python2", "null", "latin", "unknown", "utf16", "tabs", "deep", "nested", "huge", "loop")
    wanted = {"broken.ipynb", *(f"{stem}.py" for stem in stems)}
    assert wanted <= set(broken)
    assert set(broken) - wanted <= {"broken.json", "broken.yaml"}  # read only where a rule for settings is there
    assert len(set(broken)) == len(broken)
    assert {finding["path"] for finding in data["findings"]} == {"good.py", "bom.py", "crlf.py"}
    places = {finding["path"]: (finding["line"], finding["column"]) for finding in data["findings"]}
    assert places["bom.py"] == places["crlf.py"] == (3, 10)


def test_files_that_vanish(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from amptune.lint.discover import Discovery

    monkeypatch.setattr(Discovery, "find", lambda self, paths: ["gone/a.py", "b.py"])
    (project / "b.py").write_text(BUG)
    assert lint("--format", "json") == 2
    data = json.loads(capsys.readouterr().out)
    assert [error["path"] for error in data["errors"]] == ["gone/a.py"]
    assert [finding["path"] for finding in data["findings"]] == ["b.py"]


def test_a_long_file(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "long.py").write_text("x = 1  # filler\n" * 100_000 + WARNING)
    assert lint("--format", "json") == 0
    assert findings(capsys) == [("long.py", "AMP401", 100_003)]


def test_fix(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = project / "a.py"
    path.write_bytes(b"\xef\xbb\xbf" + BUG.replace("\n", "\r\n").encode())
    path.chmod(0o755)
    assert lint("--fix") == 0
    assert path.read_bytes() == b"\xef\xbb\xbf" + FIXED.replace("\n", "\r\n").encode()
    assert path.stat().st_mode & 0o777 == 0o755
    out, err = capsys.readouterr()
    assert "no findings in 1 file" in out
    assert "1 fix made in 1 file" in err
    assert lint("--fix") == 0
    assert "made" not in capsys.readouterr().err


def test_fix_can_exit_1(project: Path) -> None:
    (project / "a.py").write_text(BUG)
    assert lint("--fix", "--exit-non-zero-on-fix") == 1
    assert lint("--fix", "--exit-non-zero-on-fix") == 0


def test_unsafe_fixes_need_the_flag(project: Path) -> None:
    bug = (
        "import torch\n\ndef f(model, x):\n    with torch.autocast('cuda', dtype=torch.bfloat16):\n"
        "        y = model(x)\n        y.backward()\n"
    )
    path = project / "a.py"
    path.write_text(bug)
    assert lint("--fix", "--fail-on", "warning") == 1
    assert path.read_text() == bug
    assert lint("--unsafe-fixes", "--fail-on", "warning") == 0
    assert path.read_text() == bug.replace("        y.backward", "    y.backward")


def test_a_link_is_fixed_where_it_points(project: Path) -> None:
    (project / "real").mkdir()
    (project / "real/a.py").write_text(BUG)
    (project / "a.py").symlink_to("real/a.py")
    assert lint("--fix", "a.py") == 0
    assert (project / "a.py").is_symlink()
    assert (project / "real/a.py").read_text() == FIXED


def test_a_file_that_cannot_be_written(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from amptune.core import files
    from amptune.errors import InputError

    write = files.write_atomic

    def refuse(path: Path, content: bytes) -> None:
        if path.name == "a.py":
            raise InputError(f"cannot write {path}: Read-only file system")
        write(path, content)

    monkeypatch.setattr(files, "write_atomic", refuse)
    for name in ("a.py", "b.py"):
        (project / name).write_text(BUG)
    assert lint("--fix") == 2
    assert (project / "a.py").read_text() == BUG
    assert (project / "b.py").read_text() == FIXED
    assert "a.py: cannot be linted: cannot be fixed: cannot write" in capsys.readouterr().out


def test_ignored_findings_are_not_fixed(project: Path) -> None:
    (project / "pyproject.toml").write_text('[tool.amptune.per-file-ignores]\n"a.py" = ["AMP101"]\n')
    (project / "a.py").write_text(BUG)
    assert lint("--fix") == 0
    assert (project / "a.py").read_text() == BUG


def test_diff_changes_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "a.py").write_text(BUG)
    assert lint("--diff") == 1
    out = capsys.readouterr().out
    assert (project / "a.py").read_text() == BUG
    assert "--- a/a.py\n+++ b/a.py\n" in out
    assert "+        scaler.unscale_(optimizer)\n" in out
    (project / "a.patch").write_text(out)
    subprocess.run(["git", "apply", "a.patch"], check=True, cwd=project)
    assert (project / "a.py").read_text() == FIXED
    assert lint("--diff") == 0


def test_standard_input(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def feed(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    feed(BUG)
    assert lint("--stdin-filename", "net/x.py", "--format", "json") == 1
    assert findings(capsys) == [("net/x.py", "AMP101", 11)]
    feed(BUG)
    assert lint("-") == 1
    assert "  11 |         torch.nn.utils" in capsys.readouterr().out
    feed(BUG)
    assert lint("-", "--fix") == 0
    out, err = capsys.readouterr()
    assert out == FIXED
    assert "no findings" in err
    feed("def f(:")
    assert lint("-") == 2


def test_baseline(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = project / "a.py"
    path.write_text(BUG)
    assert lint("--baseline", "known.json", "--write-baseline") == 0
    assert "1 known findings written to known.json" in capsys.readouterr().err
    assert lint("--baseline", "known.json") == 0
    path.write_text("# moved\n\n" + BUG)
    assert lint("--baseline", "known.json") == 0
    path.write_text(BUG + BUG.replace("train", "again"))
    assert lint("--baseline", "known.json", "--format", "json") == 1
    capsys.readouterr()
    path.write_text(CLEAN)
    assert lint("--baseline", "known.json") == 0
    assert "1 findings of the baseline known.json no longer occur" in capsys.readouterr().err


def test_a_baseline_is_known_from_any_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "sub").mkdir()
    (project / "sub/a.py").write_text(BUG)
    (project / "pyproject.toml").write_text('[tool.amptune]\nbaseline = "known.json"\n')
    assert lint("--baseline", "known.json", "--write-baseline") == 0
    monkeypatch.chdir(project / "sub")
    assert lint("a.py") == 0
    assert lint(".") == 0


@pytest.mark.parametrize("text", ["", "[]", '{"version": 2, "findings": []}', '{"version": 1, "findings": [1]}', "{}"])
def test_a_damaged_baseline(project: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "known.json").write_text(text)
    assert lint("--baseline", "known.json", "--select", "AMP1") == 2
    assert "baseline" in capsys.readouterr().err


def test_statistics(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "a.py").write_text(BUG + WARNING)
    assert lint("--statistics") == 1
    assert "     1  AMP101   error    [*] clip-without-unscale\n" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["sarif", "github", "json", "text"])
def test_formats_go_to_standard_output_alone(project: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    (project / "a.py").write_text(BUG)
    assert lint("--format", form) == 1
    out, err = capsys.readouterr()
    assert "AMP101" in out
    assert err == ""


def test_results_come_from_the_cache(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from amptune.lint import runner

    (project / "a.py").write_text(BUG)
    (project / "bad.py").write_text("def f(:\n")
    assert lint("--format", "json") == 2
    first = capsys.readouterr().out
    original = runner.report_text
    try:
        runner.report_text = lambda *arguments: pytest.fail("linted again")
        assert lint("--format", "json") == 2
        assert capsys.readouterr().out == first
        (project / "b.py").write_text(BUG)  # the same content under another name
        assert lint("--format", "json") == 2
        assert [path for path, _, _ in findings(capsys)] == ["a.py", "b.py"]
    finally:
        runner.report_text = original
    (project / "a.py").write_text(FIXED)
    assert lint("--format", "json", "a.py") == 0
    assert findings(capsys) == []


def test_a_damaged_or_read_only_cache_costs_time_only(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "a.py").write_text(BUG)
    assert lint() == 1
    (cache,) = (project / ".cache/amptune").iterdir()
    cache.write_text("{broken")
    assert lint() == 1
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert lint() == 1


def test_other_rules_do_not_share_results(project: Path) -> None:
    (project / "a.py").write_text(BUG)
    assert lint("--select", "AMP4") == 0
    assert lint() == 1


def test_processes_give_the_same_report(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amptune.lint.runner._MIN_BYTES_FOR_PROCESSES", 1)
    monkeypatch.setattr("amptune.lint.runner._CHUNK_BYTES", 2000)
    used = []
    in_processes = Linter._run_in_processes
    monkeypatch.setattr(Linter, "_run_in_processes", lambda *given: used.append(1) or in_processes(*given))
    for number in range(40):
        (project / f"m{number:02d}.py").write_text(BUG + "# filler\n" * 200 + ("def f(:" if number == 7 else ""))
    assert lint("--no-cache", "--jobs", "2", "--format", "json") == 2
    two = capsys.readouterr().out
    assert used
    assert lint("--no-cache", "--jobs", "1", "--format", "json") == 2
    assert two == capsys.readouterr().out
    assert two.count('"AMP101"') == 39


def test_rules_of_the_project(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "tools").mkdir()
    (project / "tools/no_eval.py").write_text(
        textwrap.dedent('''
        from amptune.core.finding import Severity
        from amptune.core.rule import SourceRule

        class NoEval(SourceRule):
            """No eval."""
            code = "ACME001"
            name = "eval"
            severity = Severity.ERROR
            keywords = (b"eval(",)

            def check(self, source):
                for call in source.calls("eval"):
                    yield source.finding(self, call, "eval")
        ''')
    )
    (project / "pyproject.toml").write_text('[tool.amptune]\nrule-paths = ["tools"]\nexclude = ["tools"]\n')
    (project / "a.py").write_text("eval('1')\n")
    assert lint("--format", "json") == 1
    assert findings(capsys) == [("a.py", "ACME001", 1)]
    assert run(["rules", "--list"]) == 0
    assert "ACME001  eval  " in " ".join(capsys.readouterr().out.split("\n")).replace("eval                ", "eval")
    assert run(["explain", "ACME001"]) == 0
    assert "No eval." in capsys.readouterr().out


TAKEN = """
from amptune.core.rule import SourceRule
from amptune.core.finding import Severity
class A(SourceRule):
    code, name, severity, keywords = "AMP101", "a", Severity.INFO, (b"a",)
"""
OWN = TAKEN.replace("AMP101", "ACME001")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import nothing_of_this_name\n", "does not import: ModuleNotFoundError"),
        ("from amptune.core.rule import SourceRule\nclass A(SourceRule): pass\n", "lacks the class attribute 'code'"),
        (TAKEN, "AMP101 is taken"),
        (OWN.replace(', (b"a",)', "").replace(", keywords", ""), "lacks the class attribute 'keywords'"),
        (OWN.replace('(b"a",)', '("a",)'), "ACME001: keywords ('a',) are not a tuple of bytes"),
        (OWN.replace('(b"a",)', 'b"a"'), "ACME001: keywords b'a' are not a tuple of bytes"),
        (OWN.replace('(b"a",)', "()"), "ACME001: keywords () are not a tuple of bytes"),
        (OWN + '    requires = ("torch",)\n', "ACME001: requires ('torch',) is not"),
        (OWN + '    requires = b"torch"\n', "ACME001: requires b'torch' is not"),
        (OWN + '    requires = (b"torch", ())\n', "ACME001: requires (b'torch', ()) is not"),
    ],
)
def test_broken_rules_are_named(project: Path, capsys: pytest.CaptureFixture[str], content: str, message: str) -> None:
    (project / "mine.py").write_text(content)
    (project / "pyproject.toml").write_text('[tool.amptune]\nrule-paths = ["mine.py"]\n')
    assert lint() == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", "ZeroDivisionError: division by zero"),
        ("return None", "TypeError: 'NoneType' object is not iterable"),
        ("yield 3", "TypeError: it gave int in place of a Finding"),
        ("return source.nothing", "AttributeError: 'SourceFile' object has no attribute 'nothing'"),
    ],
)
def test_a_rule_that_fails_is_an_error_of_the_file(
    project: Path, capsys: pytest.CaptureFixture[str], body: str, message: str
) -> None:
    (project / "mine.py").write_text(
        "from amptune.core.rule import SourceRule\nfrom amptune.core.finding import Severity\n"
        "class A(SourceRule):\n    code, name, severity, keywords = 'ACME001', 'a', Severity.INFO, (b'torch',)\n"
        f"    def check(self, source):\n        {body}\n"
    )
    (project / "pyproject.toml").write_text('[tool.amptune]\nrule-paths = ["mine.py"]\nexclude = ["mine.py"]\n')
    (project / "a.py").write_text(BUG)
    assert lint("--format", "json") == 2
    data = json.loads(capsys.readouterr().out)
    assert data["errors"] == [{"path": "a.py", "message": f"rule ACME001 failed: {message}"}]
    assert [finding["rule"] for finding in data["findings"]] == ["AMP101"]


def test_rules_and_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rules", "--format", "json"]) == 0
    rules = {rule["code"]: rule for rule in json.loads(capsys.readouterr().out)}
    assert rules["AMP101"]["origin"] == "amptune_rules"
    assert rules["AMP101"]["fix"] is True
    assert run(["explain", "clip-without-unscale"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("# AMP101: clip-without-unscale\n")
    assert "## Why is this bad" in shown
    assert "# <- AMP101" in shown
    assert run(["explain", "AMP1O1"]) == 2
    assert "did you mean AMP1" in capsys.readouterr().err


def command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "amptune", *arguments], capture_output=True, text=True, check=False, **options
    )  # type: ignore[call-overload,no-any-return]


def test_installed_rule_packs_are_found(project: Path) -> None:
    packages = project / "packages"
    (packages / "acme_rules").mkdir(parents=True)
    (packages / "acme_rules/__init__.py").write_text(
        "from amptune.core.rule import SourceRule\nfrom amptune.core.finding import Severity\n"
        "class A(SourceRule):\n    code, name, severity, keywords = 'ACME001', 'acme', Severity.ERROR, (b'torch',)\n"
        "    def check(self, source):\n        yield source.finding(self, source.tree.body[0], 'acme')\n"
    )
    info = packages / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[amptune.rules]\nacme = acme_rules\n")
    environment = {**os.environ, "PYTHONPATH": f"{packages}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    (project / "a.py").write_text("import torch\n")
    listed = command("rules", "--list", env=environment)
    assert any(line.split() == ["ACME001", "acme", "error", "acme_rules"] for line in listed.stdout.splitlines())
    done = command("lint", "a.py", env=environment)
    assert done.returncode == 1
    assert "a.py:1:1: error ACME001" in done.stdout
    (packages / "acme_rules/__init__.py").write_text("import nothing_of_this_name\n")
    broken = command("lint", "a.py", env=environment)
    assert broken.returncode == 2
    assert "rule pack 'acme_rules' does not import" in broken.stderr


def test_the_real_command_imports_nothing_heavy(project: Path) -> None:
    (project / "a.py").write_text(BUG)
    code = (
        "import sys; from amptune.cli import run; code = run(['lint', 'a.py', '--fix']);"
        "heavy = {'torch', 'networkx', 'optuna', 'numpy', 'libcst', 'rich', 'yaml'} & set(sys.modules);"
        "print(code, sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("0 []\n")


def test_the_real_command_with_odd_names_and_a_small_terminal(project: Path) -> None:
    name = os.fsdecode(b"caf\xe9.py")
    (project / name).write_text(BUG + "# \N{SNOWMAN}\n")
    done = command("lint", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 1
    assert "caf\\udce9.py:11:9: error AMP101" in done.stdout
    assert done.stderr == ""
    for form in ("json", "sarif", "github"):
        assert command("lint", "--format", form).returncode == 1
    assert command("lint", "--baseline", "known.json", "--write-baseline").returncode == 0
    assert command("lint", "--baseline", "known.json").returncode == 0


def test_a_reader_that_goes_away(project: Path) -> None:
    for number in range(400):
        (project / f"m{number}.py").write_text(BUG)
    writer = subprocess.Popen([sys.executable, "-m", "amptune", "lint"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.readline()
    writer.stdout.close()
    assert b"Traceback" not in writer.stderr.read()
    writer.stderr.close()
    writer.wait()


def test_a_notebook_is_shown_and_known_by_the_lines_of_its_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cell(text: str) -> dict[str, object]:
        return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": text}

    def write(*cells: str) -> None:
        data = {"cells": [cell(text) for text in cells], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        (tmp_path / "a.ipynb").write_text(json.dumps(data))

    monkeypatch.chdir(tmp_path)
    write("import torch", "\n\n  \n", "scaler = torch.cuda.amp.GradScaler()")
    arguments = ["lint", "--no-cache", "--fail-on", "info", "a.ipynb"]
    assert run(arguments) == 1
    out = capsys.readouterr().out
    assert out.startswith("a.ipynb:cell 3:1:10: ")
    assert "\n  1 | scaler = torch.cuda.amp.GradScaler()\n    |          ^^^^" in out
    assert run([*arguments, "--baseline", "known.json", "--write-baseline"]) == 0
    write("# more", "import torch", "x = 1", "# and\nscaler = torch.cuda.amp.GradScaler()")
    assert run([*arguments, "--baseline", "known.json"]) == 0
    write("import torch", "second = torch.cuda.amp.GradScaler()")
    assert run([*arguments, "--baseline", "known.json"]) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
@pytest.mark.parametrize("count", [1, 1000])
def test_output_that_cannot_be_written(tmp_path: Path, count: int) -> None:
    (tmp_path / "a.py").write_text(BUG * count)
    with Path("/dev/full").open("w") as full:
        command_line = [sys.executable, "-m", "amptune", "lint", "--no-cache", "a.py"]
        done = subprocess.run(command_line, stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "amptune: error: cannot write to standard output: No space left on device\n"


def test_closed_output(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(BUG)
    line = f"{sys.executable} -m amptune lint --no-cache a.py >&-"
    done = subprocess.run(["sh", "-c", line], stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("amptune: error: standard output is closed")
