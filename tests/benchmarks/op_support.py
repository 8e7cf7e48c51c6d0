"""Generates amptune/data/op_support.json: which ops run in which format, forward and backward, on which device.

Every entry of torch's own operator tests (``op_db``) is run on the devices at hand in FP32, BF16, FP16 and both FP8
formats, forward and backward, on up to three of its own sample inputs (tests/benchmarks/op_trials.py, in child
processes, so that a crash or a hang costs one cell). Each device gives one report with torch's words for every refusal
and every disagreement with what ``op_db`` claims; the table is merged from all reports, so that a CPU and a GPU
can be tried on different machines. A device without a report has what op_db claims, and the table says so.

    python tests/benchmarks/op_support.py                        # try the CPU, and the GPU where there is one; merge
    python tests/benchmarks/op_support.py --device cuda --out D  # write the report of one device into the folder D
    python tests/benchmarks/op_support.py --merge                # merge the reports that are there
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from amptune.capture.names import op_of_spelling
from amptune.core.files import write_atomic
from tests.benchmarks.op_trials import DIRECTIONS, FORMATS, claims, operators

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "amptune" / "data" / "op_support.json"
REPORTS = Path(__file__).parent / "reports"
HUNG_AFTER = 60.0
"""Seconds without a line from a child: it hangs in the trial that it named last."""
RESTARTS = 40
# Variants that exist for layouts and shifts of indices, and say nothing about arithmetic in 16 bits; jiterator compiles
# the caller's own C++; linalg.cond would have the name of torch.cond, and lu_unpack that of lu, which computes.
SKIPPED = (
    "linalg.cond",
    "lu_unpack",
    "_softmax_backward",
    "masked.",
    "_refs.",
    "sparse.",
    "fft.fftshift",
    "fft.ifftshift",
    "fft.fftfreq",
    "fft.rfftfreq",
    "jiterator",
)
ABOUT_TYPE = re.compile(r"not implemented for|dtype|scalar type|Half|BFloat16|Float8|types?\b")
SYMBOLS = {
    "+": "ran on every sample",
    "~": "ran on some samples, or refused for their sizes and not for the format",
    "-": "refused for the format on every sample",
    "!": "ended the process or hung",
    "y": "not tried: op_db claims support",
    "n": "not tried: op_db claims no support",
    ".": "does not apply, or nothing is known",
}
ORDER = "+~y-!n."
"""Several entries of torch's tests can be one op of ours: it has the best of theirs."""


def our_name(name: str) -> str | None:
    """The name that a capture gives the op; ``None`` for what says nothing about 16 bits."""
    if name.startswith(SKIPPED) or name.startswith("__"):
        return None
    return str(op_of_spelling(name.removeprefix("nn.functional.").removeprefix("_native_").replace(".", "_")))


class _Shard:
    """One child at a time over every SHARDS-th op; a child that dies is replaced behind the trial that killed it."""

    def __init__(self, device: str, shard: int, shards: int) -> None:
        self.command = [sys.executable, str(Path(__file__).with_name("op_trials.py")), device, str(shard), str(shards)]
        self.entries: list[dict[str, Any]] = []
        self.ops, self.restarts = 1, 0

    def run(self) -> list[dict[str, Any]]:
        first = 0
        while first < self.ops and self.restarts <= RESTARTS:
            trying = self._child(first)
            if trying is None and self.entries and self.entries[-1]["position"] == self.ops - 1:
                break
            if trying is not None:
                self._cell(trying)["crashed"] = True
            self.restarts += 1
            first = self.entries[-1]["position"] + 1 if self.entries else first + 1
        return self.entries

    def _cell(self, where: list[str]) -> dict[str, Any]:
        _, direction, name = where
        cell: dict[str, Any] = self.entries[-1]["cells"].setdefault(direction, {}).setdefault(name, {})
        return cell

    def _child(self, first: int) -> list[str] | None:
        """Read one child to its end; returns the trial that ended it."""
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "rules")])}
        process = subprocess.Popen(
            [*self.command, str(first)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
        )
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_pump, args=(process, lines), daemon=True).start()
        trying: list[str] | None = None
        while True:
            try:
                text = lines.get(timeout=HUNG_AFTER)
            except queue.Empty:
                process.kill()
                text = None
            if text is None:
                process.wait()
                return trying
            trying = self._take(json.loads(text), trying)

    def _take(self, line: dict[str, Any], trying: list[str] | None) -> list[str] | None:
        if "ops" in line:
            self.ops = line["ops"]
        elif "op" in line:
            self.entries.append({**line, "cells": {}})
        elif "trying" in line:
            return list(line["trying"])
        elif "done" in line:
            self._cell(line["done"]).update(tried=line["tried"], ran=line["ran"], why=line["why"])
            return None
        return trying


def _pump(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for text in process.stdout:
        lines.put(text)
    lines.put(None)


def try_device(device: str, workers: int) -> dict[str, Any]:
    """The report of one device."""
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        shards = [pool.submit(_Shard(device, index, workers).run) for index in range(workers)]
        entries = [entry for shard in shards for entry in shard.result()]
    entries = [entry for entry in entries if our_name(entry["name"]) is not None]
    return {
        "version": 1,
        "device": device,
        "name": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "capability": _capability(device),
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - start, 1),
        "how": "each op of torch.testing's op_db run on up to 3 of its samples, cast to the format",
        "disagreements": sorted(text for entry in entries for text in _disagreements(entry)),
        "ops": {entry["op"]: _compact(entry) for entry in sorted(entries, key=lambda entry: str(entry["op"]))},
    }


def _capability(device: str) -> str:
    if device == "cuda":
        return "{}.{}".format(*torch.cuda.get_device_capability())
    return str(torch.backends.cpu.get_cpu_capability())


def _processor() -> str:
    from amptune.tune.running.device import Device

    return str(Device("cpu").describe()["gpu"])


def _symbol(cell: Mapping[str, Any] | None, claim: bool | None) -> str:
    if cell is None or not cell:
        return "." if claim is None else "y" if claim else "n"
    if cell.get("crashed"):
        return "!"
    if cell["ran"] == cell["tried"]:
        return "+"
    if cell["ran"] or (claim and not ABOUT_TYPE.search(cell["why"])):
        return "~"
    return "-"


def _compact(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of a report: a symbol for each format and direction, and why the refused ones were refused."""
    result: dict[str, Any] = {"name": entry["name"], "why": {}}
    for direction in DIRECTIONS:
        cells, claimed = entry["cells"].get(direction, {}), entry["claims"].get(direction)
        if claimed is None:
            continue
        result[direction] = "".join(_symbol(cells.get(name), claimed[name]) for name in FORMATS)
        for name in FORMATS:
            # Hardly any op has FP8 kernels: the symbol says enough.
            if (why := cells.get(name, {}).get("why")) and not name.startswith("float8"):
                result["why"].setdefault(why, []).append(f"{direction} {name}")
    return result


def _disagreements(entry: Mapping[str, Any]) -> Iterable[str]:
    for direction, cells in entry["cells"].items():
        for name, cell in cells.items():
            claim = entry["claims"].get(direction, {}).get(name)
            runs = _symbol(cell, claim) in "+~"
            if claim is not None and runs != claim and not name.startswith("float8"):  # op_db does not follow FP8
                said = "supported" if claim else "not supported"
                found = "it runs" if runs else cell.get("why") or "it ends the process"
                yield f"{entry['op']} {direction} {name}: op_db says {said}, {found}"


def claimed_report(device: str) -> dict[str, Any]:
    """What op_db says of a device that nobody tried."""
    entries = [
        {"op": f"{info.name} {info.variant_test_name}".strip(), "name": info.name, "cells": {},
         "claims": claims(info, device)}
        for info in operators(every_capability=True)
        if our_name(str(info.name)) is not None
    ]  # fmt: skip
    return {
        "device": device,
        "name": "",
        "capability": "",
        "torch": torch.__version__,
        "how": "not tried: dtypes of torch.testing's op_db, all compute capabilities assumed present",
        "ops": {str(entry["op"]): _compact(entry) for entry in entries},
    }


def merged(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The table: op -> device -> direction -> one symbol for each format."""
    table: dict[str, dict[str, dict[str, str]]] = {}
    for device, report in reports.items():
        for entry in report["ops"].values():
            name = our_name(entry["name"])
            if name is None:
                continue
            cells = table.setdefault(name, {}).setdefault(device, {})
            for direction in DIRECTIONS:
                if direction in entry:
                    cells[direction] = _best(cells.get(direction, "." * len(FORMATS)), entry[direction])
    facts = ("name", "capability", "torch", "how")
    return {
        "version": 2,
        "formats": list(FORMATS),
        "symbols": SYMBOLS,
        "devices": {device: {fact: report[fact] for fact in facts} for device, report in reports.items()},
        "ops": dict(sorted(table.items())),
    }


def _best(first: str, second: str) -> str:
    return "".join(min(pair, key=ORDER.index) for pair in zip(first, second, strict=True))


def report_path(device: str, folder: Path = REPORTS) -> Path:
    """Where the report of a device lies."""
    return folder / f"op_support_{device}.json"


def write_table() -> None:
    """Merge the committed reports into the table."""
    reports = {}
    for device in ("cpu", "cuda"):
        path = report_path(device)
        reports[device] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else claimed_report(device)
    write_atomic(TABLE, _lines(merged(reports)))


def _lines(data: Mapping[str, Any]) -> str:
    """JSON with one op a line, so that a difference between two torch versions reads well."""
    head = {key: value for key, value in data.items() if key != "ops"}
    ops = ",\n".join(f"  {json.dumps(name)}: {json.dumps(cells)}" for name, cells in data["ops"].items())
    return json.dumps(head, indent=1).removesuffix("\n}") + ',\n "ops": {\n' + ops + "\n }\n}\n"


def main() -> int:
    """Try, write, merge, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", action="append", choices=["cpu", "cuda"], help="what to try (default: all here)")
    parser.add_argument("--out", type=Path, help="folder of the reports; the table is then left alone")
    parser.add_argument("--merge", action="store_true", help="try nothing, merge the reports that are there")
    parser.add_argument("--workers", type=int, help="child processes at a time (default: one for two cores, at most 6)")
    args = parser.parse_args()
    devices = args.device or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    workers = args.workers or min(6, max(2, (os.cpu_count() or 2) // 2))
    for device in [] if args.merge else devices:
        report = try_device(device, workers)
        folder = args.out or REPORTS
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(report_path(device, folder), _lines(report))
        print(f"{device}: {report['name']}, {len(report['ops'])} entries in {report['seconds']} s, "
              f"{len(report['disagreements'])} disagreements with op_db")  # fmt: skip
    if args.out is None:
        write_table()
        print(f"wrote {TABLE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
