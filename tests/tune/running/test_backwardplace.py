"""A backward in which formats clash, and that no line of the user's takes part in: the forward call is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from amptune.capture import TargetSpec, capture, load_target
from amptune.capture.usercode import place_of
from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.tune.run import job_of
from amptune.tune.running.kernelerrors import plain_reason
from amptune.tune.running.recipes import Candidate, plan_candidate
from amptune.tune.workers.options import TuneOptions
from amptune.tune.workers.worker import Worker
from tests.tune.conftest import MLP

LINE = "        hidden = self.fc1(x)"
SOURCE = MLP.replace(
    "        return self.fc2(weights + F.relu(self.fc1(x)))",
    f"""\
{LINE}
        if hidden.requires_grad:
            hidden.register_hook(torch.Tensor.float)
        return self.fc2(weights + F.relu(hidden))""",
)
RECIPE = Candidate("autocast-bf16", autocast=Format.BF16)
PLAN = plan_candidate(Plan({name: SitePlan(Format.BF16) for name in ("embed", "norm", "fc1", "fc2")}))


@pytest.mark.parametrize("candidate", [RECIPE, PLAN], ids=["recipe", "plan"])
def test_the_call_whose_backward_fails_is_named(tmp_path: Path, candidate: Candidate) -> None:
    path = tmp_path / "net.py"
    path.write_text(SOURCE)
    target = load_target(TargetSpec(str(path)))
    options = TuneOptions(target.spec, out=tmp_path / "out", steps=3)
    worker = Worker(job_of(options, target, capture(target)), lambda *_: None)
    with pytest.raises(RuntimeError, match="changed the type") as raised:
        worker.trial(candidate, None)
    place = place_of(raised.value)
    assert place.endswith(f"net.py:{SOURCE.splitlines().index(LINE) + 1}, in its backward")
    reason = plain_reason(raised.value, place)
    assert "takes tensors of one dtype, and got FP32 and BF16" in reason
    assert place in reason
