"""Put a plan in force on a model, and prove that it is."""

from amptune.apply.held import held_tensors, held_values
from amptune.apply.plan import AppliedPlan, apply
from amptune.apply.probe import Fixing, Ties, plannable_modules, tied_by_run, uncalled_modules
from amptune.apply.realised import Mismatch, check_realised, stale_weight_casts
from amptune.apply.strided import strided_where_safe
from amptune.apply.support import can_pad, has_own_kernel, how_to_apply, legal_formats, multiplies, paddings
from amptune.apply.ties import arriving_at, held_by, meet_in_one_op, owner_of, sources_of, takes_part

__all__ = [
    "AppliedPlan",
    "Fixing",
    "Mismatch",
    "Ties",
    "apply",
    "arriving_at",
    "can_pad",
    "check_realised",
    "has_own_kernel",
    "held_by",
    "held_tensors",
    "held_values",
    "how_to_apply",
    "legal_formats",
    "meet_in_one_op",
    "multiplies",
    "owner_of",
    "paddings",
    "plannable_modules",
    "sources_of",
    "stale_weight_casts",
    "strided_where_safe",
    "takes_part",
    "tied_by_run",
    "uncalled_modules",
]
