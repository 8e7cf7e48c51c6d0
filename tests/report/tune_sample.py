"""Invented results of a search, in the shape of result.json, and a reader of pages for the tests of the reports."""

from __future__ import annotations

import dataclasses
import math
from html.parser import HTMLParser

from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan

VOID = {"meta", "input", "br"}
GIB = 2**30


def step(median, spread=0.02):
    return {"median": median, "low": median * (1 - spread), "high": median * (1 + spread), "repeats": 50}


def trial(number, kind, median=None, **fields):
    state = "valid" if median is not None else "failed"
    base = {"number": number, "kind": kind, "state": state, "reason": "", "recipe": None, "plan_hash": f"{number:016x}",
            "step_ms": None if median is None else step(median), "predicted_ms": None, "memory_bytes": None,
            "loss_gap": None if median is None else 0.0, "loss_gap_upper": None, "worst_cosine": None,
            "skipped_steps": 0, "evaluation": None, "point": {}}  # fmt: skip
    return base | fields


def entry(one, median=None):
    """A trial as ``stock``, ``best`` and ``repeats`` hold it."""
    kept = ("memory_bytes", "loss_gap", "reason")
    return {"recipe": one["recipe"] or "plan", "step_ms": step(median) if median else one["step_ms"],
            "valid": one["state"] == "valid", "trial": one["number"]} | {key: one[key] for key in kept}  # fmt: skip


def trials(memory=True):
    """Stock recipes (one invalid, one failed), then front and search trials of every state."""
    found = [
        trial(0, "stock", 312.4, recipe="fp32", memory_bytes=22 * GIB),
        trial(1, "stock", 118.3, recipe="autocast-bf16", memory_bytes=18 * GIB, loss_gap=0.00012),
        trial(2, "stock", 117.0, recipe="autocast-fp16", memory_bytes=18 * GIB, loss_gap=0.031, state="invalid",
              reason="the scaler skipped 14 of 60 steps"),
        trial(3, "stock", recipe="fp8-tensorwise", reason="OutOfMemoryError: CUDA out of memory"),
        trial(4, "front", predicted_ms=101.0, state="slow", reason="a step takes over 3x the best so far"),
    ]  # fmt: skip
    for number in range(5, 20):
        median = 84.0 + 40 * math.exp(-number / 6)
        valid = number % 4 != 0
        found.append(
            trial(number, "front" if number < 12 else "search", median, predicted_ms=median * 1.02,
                  memory_bytes=16 * GIB + number, loss_gap=0.0001 * number if valid else 0.011,
                  state="valid" if valid else "invalid",
                  reason="" if valid else "loss gap +1.100%, with its noise up to +1.200%, allowed 0.500%")
        )  # fmt: skip
    return found if memory else [one | {"memory_bytes": None} for one in found]


def result(found, best, best_stock, verdict="plan", **fields):
    """result.json for these trials; ``best`` and ``best_stock`` are (trial number, step time in the repeats)."""
    by_number = {one["number"]: one for one in found}
    speedup = best_stock[1] / best[1] if verdict == "plan" else 1.0
    return {
        "version": 1, "tool": "amptune 0.1.0", "verdict": verdict,
        "device": {"type": "cuda", "torch": "2.13.0", "gpu": "NVIDIA H100 80GB HBM3", "capability": "9.0",
                   "memory_bytes": 80 * GIB, "cuda": "13.0", "driver": "580.65.06"},
        "mode": "eager", "seed": 7, "versions": {"amptune": "0.1.0", "torch": "2.13.0"}, "noise": 0.0003,
        "tolerance": 0.005, "steps": 20, "quality_data": "train_batches", "notes": [],
        "stock": [entry(one) for one in found if one["recipe"]],
        "best": entry(by_number[best[0]], best[1]) | {"plan": "plan.json"},
        "speedup_over_best_stock": round(speedup, 4), "speedup_low": round(speedup * 0.98, 4),
        "attribution": {"full": speedup, "without_loss_and_layout": None, "stock_in_parts": None},
        "compiled": None,
        "repeats": {"stock": entry(by_number[best_stock[0]], best_stock[1])}, "trials": found, "seconds": 131.0,
    } | fields  # fmt: skip


def won(**fields):
    """A search that found a plan: 118.9 ms with autocast-bf16, 85.5 ms with trial 19."""
    return result(trials(), (19, 85.5), (1, 118.9), **fields)


def plan(num_blocks=3):
    """A plan of blocks that are alike but for the last."""
    sites = {"embed": SitePlan(Format.FP32, why="fp32 is the fastest")}
    for block in range(num_blocks):
        last = block == num_blocks - 1
        sites[f"blocks.{block}.fc"] = SitePlan(Format.FP32 if last else Format.BF16, why=f"reason of fc {block}")
        sites[f"blocks.{block}.attn#softmax.0"] = SitePlan(Format.FP32, how="source", why="numerically sensitive")
    sites["head"] = SitePlan(Format.BF16, pad=64, why="padded from 257 to 320")
    return Plan(sites, target="model.py", loss_format=None)


@dataclasses.dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""

    @property
    def classes(self):
        return (self.attributes.get("class") or "").split()


class Page(HTMLParser):
    """All elements of a page in order, with the text inside each; fails on a tag that is closed out of order."""

    def __init__(self, text):
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(text)
        self.close()
        assert not self._open, f"<{self._open[-1].tag}> is not closed"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice: {attrs}"
        self.elements.append(Element(tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop().tag == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        for element in self._open:
            element.text += data

    def all(self, tag, class_=None):
        return [e for e in self.elements if e.tag == tag and (class_ is None or class_ in e.classes)]

    def one(self, tag):
        (found,) = self.all(tag)
        return found

    @property
    def text(self):
        return " ".join(self.one("main").text.split())

    def rows(self, caption):
        """Texts of the body cells of one table, row by row; the caption is known by how it begins."""
        start = next(i for i, e in enumerate(self.elements) if e.tag == "caption" and e.text.startswith(caption))
        rows = []
        for element in self.elements[start:]:
            if element.tag == "tr":
                rows.append([])
            elif element.tag == "td":
                rows[-1].append(" ".join(element.text.split()))
            elif element.tag in ("section", "table"):
                break
        return [row for row in rows if row]

    def charts(self):
        return {e.attributes["aria-label"].split(".")[0]: e for e in self.all("svg") if e.attributes.get("role")}

    def marks(self, chart, class_):
        """The marks of one chart: ``<use>`` elements between its svg and the next one."""
        start = self.elements.index(self.charts()[chart])
        found = []
        for element in self.elements[start + 1 :]:
            if element.tag == "svg":
                break
            if element.tag == "use" and class_ in element.classes:
                found.append(element)
        return found
