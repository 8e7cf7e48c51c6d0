"""AMP001: a suppression comment that silences nothing."""

from __future__ import annotations

from amptune.core.finding import Severity
from amptune.core.rule import Example, SourceRule


class UnusedIgnore(SourceRule):
    """An `amptune: ignore` comment stands where no rule has a finding.

    ## What it does
    Flags `# amptune: ignore[...]` and `# amptune: ignore-file[...]` comments that silence no finding. A comment is
    judged only when all rules it names are switched on, so a run with `--select` does not ask to delete the others.
    A code that no rule has is named as well, with the nearest one; not one with other letters than those of all known
    rules, which may belong to a pack that is not installed.

    ## Why is this bad
    The defect is gone but its excuse is still there, and will hide the next one on that line.

    ## Example
    ```python
    x = 1  # amptune: ignore
    ```

    ## Use instead
    ```python
    x = 1
    ```

    ## Fix safety
    Safe: deletes the comment.

    ## References
    - https://docs.astral.sh/ruff/rules/unused-noqa/
    """

    code = "AMP001"
    name = "unused-ignore"
    severity = Severity.WARNING
    keywords = (b"amptune:",)

    INVALID = (
        Example(
            "nothing on the line",
            """\
import torch

x = torch.ones(3)  # amptune: ignore[AMP101] kept for later  # <- AMP001@20
# amptune: ignore-file[AMP401]  # <- AMP001
""",
            fixed="""\
import torch

x = torch.ones(3)
""",
        ),
        Example(
            "no such rule",
            """\
import torch

scaler = torch.cuda.amp.GradScaler()  # amptune: ignore[AMP401, AMP410] old  # <- AMP001@39
x = 1  # amptune: ignore[amp401]  # <- AMP001
""",
        ),
    )
    VALID = (
        Example(
            "silences a finding",
            """\
import torch

scaler = torch.cuda.amp.GradScaler()  # amptune: ignore[AMP401] torch 2.2 is supported

# amptune: ignore[AMP4] the same, above the line
other = torch.cuda.amp.GradScaler()
""",
        ),
        Example(
            "in a string",
            """\
TEXT = "write # amptune: ignore[AMP101] reason"
""",
        ),
    )
