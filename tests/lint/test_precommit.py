"""The hooks, run by the real pre-commit program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BUG = """\
import torch
scaler = torch.amp.GradScaler("cuda")
for x in loader:
    with torch.autocast("cuda", dtype=torch.float16):
        loss = model(x)
    scaler.scale(loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRE_COMMIT_HOME", str(tmp_path / "pre-commit"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "a@example.org")
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)
    project = tmp_path / "project"
    project.mkdir()
    git(project, "init", "-q")
    (project / "train.py").write_text(BUG)
    (project / "notes.txt").write_text(BUG)
    return project


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def hooks() -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    return loaded


def pre_commit(project: Path, hook: str) -> subprocess.CompletedProcess[str]:
    git(project, "add", "-A")
    command = [sys.executable, "-m", "pre_commit", "run", hook, "--all-files", "--color", "never"]
    return subprocess.run(command, cwd=project, check=False, capture_output=True, text=True)


def use(project: Path, repositories: list[dict[str, Any]]) -> None:
    (project / ".pre-commit-config.yaml").write_text(yaml.safe_dump({"repos": repositories}))


def check_both_hooks(project: Path) -> None:
    failed = pre_commit(project, "amptune-lint")
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "train.py:7:5: error AMP101" in failed.stdout
    assert "notes.txt" not in failed.stdout
    fixed = pre_commit(project, "amptune-fix")
    assert fixed.returncode == 1
    assert "files were modified by this hook" in fixed.stdout
    assert "scaler.unscale_(optimizer)\n    torch.nn" in (project / "train.py").read_text()
    passed = pre_commit(project, "amptune-lint")
    assert passed.returncode == 0, passed.stdout + passed.stderr


def test_hooks_with_this_environment(project: Path) -> None:
    interpreter = f"{sys.executable} -m amptune"
    local = [
        {**hook, "entry": hook["entry"].replace("amptune", interpreter, 1), "language": "system"} for hook in hooks()
    ]
    use(project, [{"repo": "local", "hooks": local}])
    check_both_hooks(project)


@pytest.mark.full
def test_hooks_installed_by_pre_commit(project: Path, tmp_path: Path) -> None:
    copy = tmp_path / "amptune"
    for name in git(ROOT, "ls-files", "-co", "--exclude-standard").splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    git(copy, "init", "-q")
    git(copy, "add", "-A")
    git(copy, "commit", "-q", "-m", "copy")
    revision = git(copy, "rev-parse", "HEAD").strip()
    use(project, [{"repo": str(copy), "rev": revision, "hooks": [{"id": hook["id"]} for hook in hooks()]}])
    assert "amptune" not in os.environ.get("PYTHONPATH", "")
    check_both_hooks(project)
