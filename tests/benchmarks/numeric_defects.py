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

from amptune.analyze.runner import Question, analyze_graph, enriched
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.finding import Finding, Severity
from amptune.core.graph import PrecisionGraph
from amptune.core.hardware import gpus_named
from amptune.core.recipes import recipe_named
from tests.analyze.numeric_defects import PAIRS, Pair
from tests.analyze.numeric_defects_calls import CALLS
from tests.analyze.numeric_defects_held import HELD
from tests.analyze.numeric_defects_more import MORE
from tests.analyze.numeric_defects_read import READ
from tests.analyze.numeric_defects_second import SECOND
from tests.analyze.numeric_defects_unseen import UNSEEN

REPORT = Path(__file__).parent / "reports" / "numeric_defects.md"
RECIPES = {"fp32": "fp32", "fp16": "autocast-fp16", "bf16": "autocast-bf16"}
GROUPS = {
    "kinds of the published benchmark": PAIRS, "other styles": MORE, "held back": HELD, "inside other models": UNSEEN,
    "formats and dimensions too": SECOND, "calls of one helper": CALLS,
    "missed in whole models": READ,
}  # fmt: skip
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


Graphs = tuple[PrecisionGraph, PrecisionGraph]
"""The sites of a model, and the calls of its sites."""


def graphs_of(text: str, folder: Path, frontends: Sequence[str] = ("record-fake", "record-real")) -> Graphs:
    """The captured graphs of a model file."""
    file = folder / "model.py"
    file.write_text(text)
    captured = capture(load_target(TargetSpec(str(file))), frontends=frontends)
    calls = enriched(captured)
    return captured.graph, calls


def findings(graphs: Graphs, number_format: str, rules: Sequence[str] = ()) -> list[Finding]:
    """What the numerical rules, and the named ones, find under the recipe of one format."""
    recipe = recipe_named(RECIPES[number_format])
    select = ("G2", "G4", *(code for code in rules if code[:2] not in ("G2", "G4")))
    question = Question(gpus_named(("h100",)), recipes=(recipe,), recipes_named=True, select=select)
    return list(analyze_graph(graphs[0], question, graphs[1]).findings)


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
    defect, twin = graphs_of(text, folder), graphs_of(file_text(pair, pair.twin), folder)
    outcomes = []
    for number_format in RECIPES:
        hits = [
            each for each in findings(defect, number_format, pair.rules)
            if each.rule in pair.rules and (not marked or each.location.line in marked)
        ]  # fmt: skip
        blamed = [f"{each.rule}: {each.message}" for each in findings(twin, number_format, pair.rules)
                  if each.severity > Severity.INFO or each.rule[:2] == "G1"]  # fmt: skip
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


PUBLISHED = """\
| tool | defects found of 79 | false positives | source |
|---|---|---|---|
| DEBAR (static) | 48 (TensorFlow alone: it cannot read the 22 PyTorch programs) | 12 on the same set | GRIST paper |
| GRIST (dynamic) | 78 | 0 by construction | GRIST paper, ESEC/FSE 2021 |
| RANUM (static) | 79 (a node is reported for each case) | not published | its repository |

RANUM on hand-built ONNX graphs (as noted when it was tried): finds log(softmax), log(sigmoid), log(1 - sigmoid) and
log(1 + exp); silent on log(softmax + 1e-7), log(clip(softmax)) and softplus; **reports log_softmax and
exp(z - max z)**, which are stable. It takes inputs in [-50, 50], weights in [-10, 10], and the limits of FP32 alone.
"""
NOTES = """\
What is comparable: the kinds of defects. What is not: the 79 programs are not part of this benchmark (57 are programs
of TensorFlow 1); the pairs here were written by the authors of amptune, the first group from the kinds that the paper
lists, the second in other styles. When the second group was first run, before anything was changed for it, 34 of its
55 defects in FP32 were found (37 of 64 in FP16, 35 of 56 in BF16) and 2 twins were reported. The third group was
written when all of the first two were right, and run once before it was looked at: **20 of 24 in FP32, 23 of 28 in
FP16, 20 of 24 in BF16, 1 twin reported**. The fourth group stands inside models of other kinds (graph networks,
capsules, flows, splines, radiance fields, policies, codebooks), 60 pairs: on its first run **39 of 49 in FP32, 42 of 56
in FP16, 41 of 53 in BF16, 1 twin reported**. The fifth, 40 pairs with formats and dimensions among them, was written
before anything was changed for the fourth and run once after that: **25 of 26 in FP32, 34 of 39 in FP16, 26 of 27 in
BF16, 1 twin reported** (rightly: its loss was a mean in 16 bits, and it was mended). Three of its pairs were left out
afterwards: one is no defect under CUDA autocast, one was none as written, one is too small for a rule about time; one
more was made wider, from 16 elements to 64. The sixth, 5 pairs of helpers that are called twice, loops and spectra in
half, was written after each call had bounds of its own, for just that: all were right when first run.
The table above is after the fixes, so it says that nothing known is
missed, and these figures how much of the unknown is found. Pairs were changed too, after each twin was run in FP32 on
zeros, ordinary and large numbers: 1 / (1 + exp(-x)), first written as a stable twin, has a gradient of NaN and became a
defect; a guarded logarithm of relu, which relu's own gradient repairs, became one of abs.
Four pairs counted `.square()` or `std` in FP16 as a defect, which neither is: autocast squares in
FP32, and std takes its root before it rounds. They are changed, so the figures of the first
runs above hold up to four hits that were none.

Whole models, read as their authors would: 33 of kinds that no test here has (neural ODE, flow, RWKV, state spaces in
chunks, experts with capacity, attention over points and edges, splats, diffusion, policies, CTC, mixture densities,
filters, physics, segmentation, distillation, speech, forecasts, transport, hyperbolic places, angular margins, learned
step sizes), 18 of them with one planted defect and a stable twin. At first reading all defects were reported at their
lines (17: one was none, its infinity ended in a clamp), at least four of them as information alone (std of a group
without eps, root of a distance, Sinkhorn's kernel, acosh), and every model was captured. Of 104 findings beside those
about the GPUs 8 were false, by 6 causes: as errors a product beside a tensor that was made like one that had been cast;
as a warning a square of weights alone; as information -0.5 * x * x as an exponent without a bound, decays under a
causal mask, a parameter without dimensions that was said to promote, a sum by segment that was read back by its index.
One exponential in a loop was reported twice, for two reasons. All are mended.

28 more, again of other kinds (masked autoencoders, detection by matching, exponential gates with a stabiliser, sigmoid
contrast, world models, sparsemax, equivariant graphs, spikes, signed distances, vocoders, adapters, random fields,
self-distillation, survival, quantised codes, insurance, focal loss, redundancy reduction, ranking, drafts, evidence,
Gaussian processes, norms by hand, routes, squashed policies, enhancement, embeddings in two dimensions, pure BF16): 13
sound, and 15 with 25 planted lines. At first reading 23 of the 25 were reported, one of them two lines below, 8 as
information alone. Two were missed: a division by the logarithm of a rank that starts at zero, and the eps of a variance
by two means that is below its rounding. Every model was captured, in 14 s of processor time at most. Of 96 findings
beside those about the GPUs 8 were false or misleading, by 7 causes: as a warning the variance of images of the batch
that an einsum had moved; as information labels of the batch as exponents, the gradient of a root at the zeros of relu,
sums and a maximum that conditions keep above zero (3), "add an eps" where one stood, and a promotion priced where the
GPU emulates the format. All but the maximum are mended; what was missed stands in the table as pairs.

Found means that one of the pair's rules reports the marked line, at any severity; a false positive is a warning or an
error of any numerical rule (G2xx, G4xx), or of the pair's own rule, on the twin, in a format in which the pair is
defined.
"""


def report(groups: dict[str, list[Outcome]], seconds: float) -> str:
    """The committed report."""
    count = sum(len(outcomes) // len(RECIPES) for outcomes in groups.values())
    how = (
        f"`python -m tests.benchmarks.numeric_defects --write`: {count} pairs, each captured and judged under fp32,\n"
        f"autocast-fp16 and autocast-bf16 (CUDA's rules); {1000 * seconds / (2 * count):.0f} ms of processor time a "
        "model, capture included."
    )
    title = "# Numerical defects and their stable twins"
    return "\n".join([title, "", how, "", table(groups), "", "## Published scores", "", PUBLISHED, NOTES])


def main() -> int:
    """Judge all pairs; 1 when a defect is missed or a twin blamed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the report")
    parser.add_argument("--only", default="", help="pairs whose name holds these words")
    options = parser.parse_args()
    start = time.process_time()
    groups: dict[str, list[Outcome]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for group, pairs in GROUPS.items():
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
    if options.write and not options.only:
        REPORT.write_text(report(groups, time.process_time() - start), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
