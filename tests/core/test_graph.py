from __future__ import annotations

import dataclasses

import pytest

from amptune.core.graph import INPUT, OUTPUT, Gemm, PrecisionGraph, Site, TensorMeta

X = TensorMeta((4, 8), "float32")


def graph() -> PrecisionGraph:
    made = PrecisionGraph()
    made.add_site(Site("a", "linear", "module", "a", inputs=(X,), outputs=(X,), flops=10))
    made.add_site(Site("#add.0", "add", "function", "", inputs=(X, X), outputs=(X,), flops=1))
    made.add_tensor(INPUT, "a", X)
    made.add_tensor("a", "#add.0", X)
    made.add_tensor("a", "#add.0", TensorMeta((2,), "int64"))
    made.add_tensor("#add.0", OUTPUT, X)
    return made


def test_two_tensors_between_two_sites_are_both_kept() -> None:
    assert [t.dtype for t in graph().tensors("a", "#add.0")] == ["float32", "int64"]
    assert graph().tensors("#add.0", "a") == []


def test_neighbours_are_sites() -> None:
    made = graph()
    assert [s.id for s in made.consumers("a")] == ["#add.0"]
    assert made.producers("a") == []
    assert made.consumers("#add.0") == []
    assert made.flops == 11


def test_an_id_is_taken_once() -> None:
    with pytest.raises(ValueError, match="'a'"):
        graph().add_site(Site("a", "linear", "module", "a"))


def test_the_fingerprint_is_of_ops_and_shapes() -> None:
    same, other = graph(), graph()
    other.replace_site(dataclasses.replace(other["a"], outputs=(TensorMeta((4, 9), "float32"),)))
    moved = graph()
    moved.replace_site(dataclasses.replace(moved["a"], flops=99))
    assert graph().fingerprint() == same.fingerprint() == moved.fingerprint() != other.fingerprint()


def test_sizes() -> None:
    assert (X.numel, X.nbytes, X.is_floating) == (32, 128, True)
    assert TensorMeta((), "int64").nbytes == 8
    assert Gemm(2, 3, 4, batch=5).flops == 240
