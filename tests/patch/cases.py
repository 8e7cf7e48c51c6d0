"""Plans and specs written short, and the golden files: what goes in, a marker line, what comes out."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.patch.spec import PatchSpec, SiteRef

GOLDEN = Path(__file__).parent / "golden"
HEADER = "# case: "
MARKER = "# ---- patched ----\n"


def plan_of(sites: dict[str, Any], **fields: Any) -> Plan:
    """A plan from ``{"fc": "bf16", "fc#softmax.0": {"format": "fp32", "how": "source"}}``."""
    formats = {key: Format.parse(fields.pop(key)) for key in ("output_format", "loss_format") if fields.get(key)}
    return Plan(sites={name: _site(value) for name, value in sites.items()}, **formats, **fields)


def spec_of(
    sites: dict[str, Any], *, codes: dict[str, str] | None = None, modules: Any = (), **fields: Any
) -> PatchSpec:
    """A spec whose modules are those of the sites and all containers of them, and ``modules``."""
    paths = [name.partition("#")[0] for name in sites] + list(modules)
    containers = {".".join(path.split(".")[:depth]) for path in paths for depth in range(path.count(".") + 1)}
    refs = tuple(SiteRef(name, (codes or {}).get(name, "")) for name in sites)
    return PatchSpec("model.py", refs, tuple(dict.fromkeys([*paths, *sorted(containers)])), **fields)


def _site(value: Any) -> SitePlan:
    entry = {"format": value} if isinstance(value, str) else dict(value)
    return SitePlan(**{**entry, "format": Format.parse(entry["format"])})


@dataclasses.dataclass(frozen=True)
class Golden:
    """One golden file: its first line is JSON with plan and spec, then the user's file, then the patched one."""

    path: Path
    header: str
    source: str
    patched: str

    @property
    def plan(self) -> Plan:
        case = json.loads(self.header)
        return plan_of(case["sites"], **case.get("plan", {}))

    @property
    def spec(self) -> PatchSpec:
        case = json.loads(self.header)
        return spec_of(case["sites"], codes=case.get("codes"), modules=case.get("modules", ()), **case["spec"])


def goldens() -> list[Golden]:
    """All golden files, by name."""
    return [_golden(path) for path in sorted(GOLDEN.glob("*.txt"))]


def _golden(path: Path) -> Golden:
    header, rest = path.read_text(encoding="utf-8").split("\n", 1)
    source, _, patched = rest.partition(MARKER)
    return Golden(path, header.removeprefix(HEADER), source, patched)
