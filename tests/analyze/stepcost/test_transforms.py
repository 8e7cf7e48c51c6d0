"""Passes of Fourier transforms through memory."""

from __future__ import annotations

from amptune.analyze.stepcost.kernels import Move, Setting
from amptune.analyze.stepcost.sitekernels import kernels_of
from amptune.core.autocast import realise
from amptune.core.graph import INPUT, Site, TensorMeta
from amptune.core.recipes import RECIPES
from tests.analyze.graphs import graph_of

REAL, COMPLEX = TensorMeta((4, 64, 64), "float32", True), TensorMeta((4, 64, 33), "complex64", True)


def moves(called: str, given: TensorMeta, made: TensorMeta) -> tuple[list[Move], list[Move]]:
    site = Site("#fft.0", "fft", "function", "", inputs=(given,), outputs=(made,), sources=(INPUT,),
                attrs={"called": called})  # fmt: skip
    setting = Setting(RECIPES["fp32"])
    found = kernels_of(site, realise(graph_of(site), setting.recipe)[site.id], setting)
    forward, backward = ([each for each in side if isinstance(each, Move)] for side in (found.forward, found.backward))
    return forward, backward


def test_each_dimension_is_a_pass() -> None:
    one, two = (sum(each.bytes for each in moves(name, REAL, COMPLEX)[0]) for name in ("fft_rfft", "fft_rfft2"))
    half = 4 * 64 * 33 * 8
    assert one == 4 * 64 * 64 * 4 + half
    assert two - one == 2 * half


def test_the_gradient_of_real_numbers_is_a_whole_complex_transform() -> None:
    whole = 4 * 64 * 64 * 8
    forward, backward = moves("fft_rfft2", REAL, COMPLEX)
    assert sum(each.bytes for each in backward) > 4 * whole > sum(each.bytes for each in forward)


def test_the_inverse_is_scaled_and_its_operand_copied() -> None:
    given, made = 4 * 64 * 33 * 8, 4 * 64 * 64 * 4
    forward, _ = moves("fft_irfft2", COMPLEX, REAL)
    assert sum(each.bytes for each in forward) == (given + made) + 2 * given + 2 * given + 2 * made
