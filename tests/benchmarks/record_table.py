"""Records a model's measured costs, edges and rounding errors on the device at hand, for search_quality.py.

    python tests/benchmarks/record_table.py examples/gpt.py gpt_h100

writes data/gpt_h100.json beside this file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from amptune.capture import TargetSpec, capture, load_target
from amptune.tune.choices.edges import edges_of
from amptune.tune.running.device import find_device
from amptune.tune.running.recipes import Candidate
from amptune.tune.workers.job import Job
from amptune.tune.workers.options import TuneOptions
from amptune.tune.workers.worker import Worker

DATA = Path(__file__).parent / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("name")
    parser.add_argument("--device")
    args = parser.parse_args()
    device = find_device(args.device)
    spec = TargetSpec(args.model)
    captured = capture(load_target(spec))
    options = TuneOptions(spec, Path(), device=device.name, steps=5)
    worker = Worker(Job(options, None, {}, (), 1), lambda *_: None)
    space = worker.space(captured.graph)
    measured = worker.trial(Candidate("fp32"), None)
    assert measured.step is not None
    data = {
        "model": args.model,
        "device": device.describe(),
        "fp32_step_ms": measured.step.median,
        "groups": [
            {"name": g.name, "sites": g.sites, "choices": [c.label for c in g.choices], "fp8": sorted(g.fp8)}
            for g in space.module_groups()
        ],
        "meets": [sorted(names) for names in space.meets],
        "costs": worker.costs(space, captured.graph).to_json(),
        "edges": [edge.to_json() for edge in edges_of(captured.graph, space)],
        "sensitivity": worker.sensitivity(space).to_json(),
    }
    DATA.mkdir(exist_ok=True)
    (DATA / f"{args.name}.json").write_text(json.dumps(data) + "\n")


if __name__ == "__main__":
    main()
