"""Recall and false positives of analyze on numerical defects and their stable twins, per format, beside RANUM's scores.

    python -m tests.benchmarks.numeric_defects [--write] [--only WORDS]

prints every miss and every false positive, and with ``--write`` the report. A defect counts as found when one of its
rules reports it, on the marked line where one is marked, under the recipe of the format. A twin counts as a false
positive when any numerical rule gives a warning or an error.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from amptune.analyze.enrich import enrich
from amptune.analyze.runner import Question, analyze_graph
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.finding import Finding, Severity
from amptune.core.graph import PrecisionGraph
from amptune.core.hardware import gpus_named
from amptune.core.recipes import recipe_named
from tests.analyze.numeric_defects import PAIRS, Pair
from tests.analyze.numeric_defects_more import MORE

REPORT = Path(__file__).parent / "reports" / "numeric_defects.md"
RECIPES = {"fp32": "fp32", "fp16": "autocast-fp16", "bf16": "autocast-bf16"}
HEADER = """\
import torch
import torch.nn.functional as F
from torch import nn

"""
FOOTER = """

def make_model():
    return Model()


def make_batch():
    return torch.randn(64, 64), torch.rand(64, 64)


def run(model, batch):
    return model(*batch)
"""
LOSS = """

def loss_fn(output, batch):
    first = output[0] if isinstance(output, tuple) else output
    return first.float().mean()
"""
MODEL = """\
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 64)

    def forward(self, x, t):
        h = self.fc(x)
{body}
"""


def file_text(pair: Pair, body: str) -> str:
    """The model file of a defect or twin."""
    model = body if pair.whole else MODEL.format(body=textwrap.indent(body, " " * 8))
    return HEADER + model + ("" if "def loss_fn" in model else LOSS) + FOOTER


def graph_of(text: str, folder: Path, frontends: Sequence[str] = ("record-fake", "record-real")) -> PrecisionGraph:
    """The captured graph of a model file."""
    file = folder / "model.py"
    file.write_text(text)
    captured = capture(load_target(TargetSpec(str(file))), frontends=frontends)
    enrich(captured.graph, captured.graph_module)
    return captured.graph


def findings(graph: PrecisionGraph, number_format: str) -> list[Finding]:
    """What the numerical rules find under the recipe of one format."""
    recipe = recipe_named(RECIPES[number_format])
    question = Question(gpus_named(("h100",)), recipes=(recipe,), recipes_named=True, select=("G2", "G4"))
    return [each for each in analyze_graph(graph, question).findings if each.rule[:2] in ("G2", "G4")]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One pair in one format: what should have been found and was, and what a twin was blamed for."""

    pair: Pair
    number_format: str
    expected: bool
    found: bool
    blamed: tuple[str, ...]


def judge(pair: Pair, folder: Path) -> list[Outcome]:
    """A pair in all formats."""
    text = file_text(pair, pair.defect)
    marked = {number for number, line in enumerate(text.splitlines(), 1) if re.search(r"#\s*<-\s*$", line)}
    defect, twin = graph_of(text, folder), graph_of(file_text(pair, pair.twin), folder)
    outcomes = []
    for number_format in RECIPES:
        hits = [
            each for each in findings(defect, number_format)
            if each.rule in pair.rules and (not marked or each.location.line in marked)
        ]  # fmt: skip
        blamed = [f"{each.rule}: {each.message}" for each in findings(twin, number_format)
                  if each.severity > Severity.INFO]  # fmt: skip
        expected = pair.format in ("fp32", number_format)
        outcomes.append(Outcome(pair, number_format, expected, bool(hits), tuple(blamed) if expected else ()))
    return outcomes


def table(groups: dict[str, list[Outcome]]) -> str:
    """Recall and false positives of each group of pairs, by format."""
    lines = ["| pairs | format | defects | found | twins | false positives |", "|---|---|---|---|---|---|"]
    for name, outcomes in groups.items():
        for number_format in RECIPES:
            asked = [each for each in outcomes if each.number_format == number_format and each.expected]
            found, blamed = sum(each.found for each in asked), sum(bool(each.blamed) for each in asked)
            lines.append(f"| {name} | {number_format} | {len(asked)} | {found} | {len(asked)} | {blamed} |")
    return "\n".join(lines)


def main() -> int:
    """Judge all pairs; 1 when a defect is missed or a twin blamed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the report")
    parser.add_argument("--only", default="", help="pairs whose name holds these words")
    options = parser.parse_args()
    start = time.process_time()
    groups: dict[str, list[Outcome]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for group, pairs in (("kinds of the published benchmark", PAIRS), ("other styles", MORE)):
            for pair in pairs:
                if options.only in pair.name:
                    groups.setdefault(group, []).extend(judge(pair, Path(folder)))
    wrong = 0
    for outcome in (each for outcomes in groups.values() for each in outcomes):
        if outcome.expected and not outcome.found:
            wrong += 1
            print(f"missed in {outcome.number_format}: {outcome.pair.name}")
        for text in outcome.blamed:
            wrong += 1
            print(f"false in {outcome.number_format}: {outcome.pair.name}: {text}")
    print(table(groups), f"\n{time.process_time() - start:.1f} s of processor time")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
