"""Findings of repeated blocks as one."""

from __future__ import annotations

import dataclasses

import pytest

from amptune.analyze.findings.grouping import group, of_sites, without_repeats
from amptune.core.finding import Finding, Location, Severity
from amptune.core.graph import SiteCall
from amptune.core.hardware import GPUS

PLACE = Location("model.py", 3, 5, 3, 20)
STEP = {("h100", "autocast-bf16"): 10.0}


def finding(site: str, message: str = "K = 7", place: Location = PLACE, **evidence: object) -> Finding:
    return Finding("G101", "gemm-k-misaligned", Severity.WARNING, message, place, site, evidence)


def test_like_findings_become_one_that_lists_its_sites() -> None:
    (found,) = group([finding(f"blocks.{i}.fc") for i in range(5)], {}, [])
    assert found.site == "blocks.0.fc"
    assert found.evidence["sites"] == [f"blocks.{i}.fc" for i in range(5)]
    assert "[5 sites: blocks.0.fc, blocks.1.fc, ...]" in found.message


def test_savings_are_added_up_and_set_against_the_step() -> None:
    (found,) = group([finding(f"b.{i}", saves_ms={"h100": 0.5}) for i in range(3)], STEP, [GPUS["h100"]])
    assert found.evidence["saves_ms"] == {"h100": 1.5}
    assert "1.5 of 10 ms on h100 a step (predicted)" in found.message


def test_sites_of_a_line_with_one_odd_size_are_one_finding_as_severe_as_the_gravest() -> None:
    size = {"dimension": "K", "value": 100, "padded": 112}
    small = finding("q", "K = 100: pad", saves_ms={"h100": 0.1}, **size)
    large = finding("k", "K = 100: pad together with N", Location("model.py", 3, 30), saves_ms={"h100": 0.5}, **size)
    found = group([dataclasses.replace(small, severity=Severity.INFO), large], STEP, [GPUS["h100"]])
    assert [(each.severity, each.evidence["sites"]) for each in found] == [(Severity.WARNING, ["q", "k"])]
    assert found[0].message.startswith("K = 100: pad; would save about 0.6 of 10 ms")
    assert len(group([small, finding("v", "K = 9: pad", dimension="K", value=9, padded=16)], {}, [])) == 2


def test_a_step_bound_by_launches_saves_nothing() -> None:
    (found,) = group([finding("b", saves_ms={"h100": 0.5})], {}, [GPUS["h100"]])
    assert "would save" not in found.message


def test_traffic_is_added_up_over_the_sites() -> None:
    (found,) = group([finding(f"b.{i}", "pow casts", bytes=2**30) for i in range(12)], {}, [])
    assert found.evidence["bytes"] == 12 * 2**30
    assert found.message.startswith("pow casts; about 12,288 MiB of extra traffic a step [12 sites")


def test_a_normalisation_by_a_root_without_eps_is_told_at_the_root() -> None:
    root = Finding("G206", "root-at-zero", Severity.INFO, "sqrt of zero", PLACE, "norm", {})
    divisions = [
        Finding("G205", "division-by-zero", Severity.INFO, "x / 0", Location("model.py", line, 5), f"div.{line}", seen)
        for line, seen in enumerate(({"root": "norm"}, {"root": "norm"}, {"root": "other"}, {}), 4)
    ]
    assert without_repeats([root, *divisions]) == [root, *divisions[2:]]
    graver = dataclasses.replace(divisions[0], severity=Severity.WARNING)
    assert without_repeats([root, graver]) == [root, graver]
    assert without_repeats(divisions) == divisions


def test_information_of_a_line_that_differs_in_numbers_alone_is_one_finding() -> None:
    first, second = (
        Finding("G408", "sdpa-backend", Severity.INFO, f"{size} x {size} scores", PLACE, f"stages.{size}", {})
        for size in (256, 64)
    )
    (found,) = group([first, second], {}, [])
    assert found.message == "256 x 256 scores [2 sites, numbers of the first: stages.256, stages.64]"
    assert found.evidence["sites"] == ["stages.256", "stages.64"]
    grave = [dataclasses.replace(each, severity=Severity.WARNING) for each in (first, second)]
    assert len(group(grave, {}, [])) == 2


def test_different_lines_and_messages_stay_apart_and_are_sorted() -> None:
    other = Location("model.py", 1)
    found = group([finding("b"), finding("a", message="K = 9"), finding("c", place=other)], {}, [])
    assert [(each.location.line, each.message) for each in found] == [(1, "K = 7"), (3, "K = 9"), (3, "K = 7")]


def test_a_finding_without_a_site_has_no_list() -> None:
    bare = Finding("G405", "arch-no-bf16", Severity.WARNING, "no BF16 units", PLACE)
    assert group([bare], {}, []) == [bare]


def test_dimensions_that_are_named_one_by_one_are_not_named_again() -> None:
    both = Finding("G108", "fp8-dims", Severity.INFO, "K and N", PLACE, "fc", {"dimension": ["K", "N"]})
    k, n = (finding("fc", message=name, dimension=name) for name in "KN")
    assert without_repeats([k, n, both]) == [k, n]
    assert without_repeats([k, both]) == [k, both]
    assert without_repeats([finding("other", dimension="K"), n, both])[-1] == both
    certain = dataclasses.replace(both, severity=Severity.ERROR)
    assert without_repeats([k, n, certain])[-1] == certain


def test_information_of_lines_that_follow_each_other_is_one_finding() -> None:
    def norm(site: str, line: int, severity: Severity = Severity.INFO, **evidence: object) -> Finding:
        place = Location("model.py", line, 5, line, 20)
        return dataclasses.replace(finding(site, "no eps", place, **evidence), severity=severity)

    (found,) = group([norm("image", 3), norm("text", 4)], {}, [])
    assert (found.location.line, found.evidence["lines"]) == (3, [3, 4])
    assert found.message == "no eps; the same on line 4 [2 sites: image, text]"
    assert len(group([norm("image", 3), norm("text", 6)], {}, [])) == 2
    assert len(group([norm("image", 3), norm("text", 4, Severity.WARNING)], {}, [])) == 2
    assert len(group([norm(name, line, padded=8) for name, line in (("q", 3), ("k", 4))], {}, [])) == 2


def test_information_of_the_forward_of_one_module_is_one_finding() -> None:
    def product(site: str, line: int, severity: Severity = Severity.INFO) -> Finding:
        return dataclasses.replace(finding(site, "not scaled", Location("model.py", line)), severity=severity)

    (found,) = group([product("att#matmul.0", 3), product("att#matmul.4", 30), product("att#matmul.8", 90)], {}, [])
    assert found.evidence["lines"] == [3, 30, 90]
    assert len(group([product("att#matmul.0", 3), product("other#matmul.0", 30)], {}, [])) == 2
    assert len(group([product(f"att#matmul.{line}", line, Severity.WARNING) for line in (3, 30)], {}, [])) == 2


@pytest.mark.parametrize(
    ("numbers", "told"),
    [((2,), "the 2nd of 5"), ((2, 3, 4, 5), "from the 2nd on, of 5"), ((1, 3), "the 1st, 3rd of 5")],
)
def test_turns_of_a_loop_are_named(numbers: tuple[int, ...], told: str) -> None:
    (found,) = of_sites([finding("exp", "it overflows", calls=(SiteCall("exp", number, 5),)) for number in numbers])
    assert found.message == f"it overflows [{told} times that this line runs in a step]"


def test_like_findings_of_one_line_are_one_whatever_their_columns() -> None:
    places = [Location("model.py", 3, column, 3, column + 4) for column in (5, 30)]
    roots = [finding(f"sqrt.{number}", "sqrt of a difference", place) for number, place in enumerate(places)]
    (found,) = group(roots, {}, [])
    assert found.location == places[0]
    assert found.evidence["sites"] == ["sqrt.0", "sqrt.1"]


def test_traffic_of_lines_that_follow_each_other_is_added_up() -> None:
    lines = [Location("model.py", line) for line in (3, 4, 9)]
    found = group([finding(f"mul.{place.line}", "promotes", place, bytes=2**20) for place in lines], {}, [])
    assert [each.evidence["bytes"] for each in found] == [2 * 2**20, 2**20]
    assert "the same on line 4" in found[0].message


def test_information_about_the_other_calls_of_a_line_gives_way_to_what_is_graver() -> None:
    calls = [SiteCall("exp", number, 3) for number in (1, 2, 3)]
    early = dataclasses.replace(finding("exp", "no op bounds it", calls=tuple(calls[:2])), severity=Severity.INFO)
    late = finding("exp", "it is logged", calls=tuple(calls[2:]))
    (told,) = of_sites([early, late])
    assert told.message == "it is logged [the 3rd of 3 times that this line runs in a step]"
    other = dataclasses.replace(early, site="other")
    assert len(of_sites([other, late])) == 2


def test_two_odd_dimensions_of_one_product_are_told_once() -> None:
    first = finding("mid", "K = 1021", value=1021, together=1003)
    second = dataclasses.replace(finding("mid", "N = 1003", value=1003, together=1021), rule="G102")
    alone = dataclasses.replace(finding("head", "N = 1003", value=1003), rule="G102")
    assert without_repeats([first, second, alone]) == [first, alone]
    graver = dataclasses.replace(first, severity=Severity.INFO)
    assert without_repeats([graver, second]) == [graver, second]
    assert without_repeats([second]) == [second]


def test_a_loss_that_overflows_is_not_told_to_keep_few_digits() -> None:
    loss = dataclasses.replace(finding("sum", "the loss is computed in fp16"), rule="G212")
    total = dataclasses.replace(finding("sum", "sum of 524288 elements", format="fp16"), rule="G207")
    assert without_repeats([total, loss]) == [total]
    assert without_repeats([dataclasses.replace(total, severity=Severity.INFO), loss])[-1] == loss
    assert without_repeats([dataclasses.replace(total, site="other"), loss])[-1] == loss


def test_what_one_call_of_a_line_has_beside_the_others_is_said_once() -> None:
    first = finding("log", "log(0) is -inf and its gradient not finite; use a clamp", calls=[SiteCall("log.0", 1, 2)])
    second = finding("log", "log(0) is -inf; use a clamp", calls=[SiteCall("log.0", 2, 2)])
    other = finding("log", "log(0) is -inf under autocast-fp16; use a clamp", calls=[SiteCall("log.0", 2, 2)])
    (told,) = of_sites([second, first])
    assert told.message == first.message
    assert len(of_sites([first, other])) == 2
