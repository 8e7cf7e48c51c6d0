"""tied_by_dtype and meet_in_one_op on graphs written by hand."""

from amptune.apply import meet_in_one_op, tied_by_dtype
from amptune.core.graph import INPUT, Param, PrecisionGraph, Site, TensorMeta

TENSOR = TensorMeta((4, 4), "float32")
SCALAR = TensorMeta((), "float32")
TOKENS = TensorMeta((4,), "int64")
WEIGHT = (Param("w", TENSOR),)


def _module(name: str, op: str = "linear") -> Site:
    return Site(name, op, "module", name, inputs=(TENSOR,), params=WEIGHT)


def _function(name: str, op: str, **fields: object) -> Site:
    return Site(name, op, "function", "", **{"inputs": (TENSOR, TENSOR), **fields})  # type: ignore[arg-type]


def _graph(sites: list[Site], edges: list[tuple[str, str]] | list[tuple[str, str, TensorMeta]]) -> PrecisionGraph:
    graph = PrecisionGraph()
    for site in sites:
        graph.add_site(site)
    for source, target, *tensor in edges:
        graph.add_tensor(source, target, tensor[0] if tensor else TENSOR)
    return graph


def test_producers_of_a_product_are_tied_through_followers() -> None:
    graph = _graph(
        [_module("q"), _module("k"), _module("v"), _module("o"), _function("#mul.0", "mul"),
         _function("#matmul.0", "matmul"), _function("#softmax.0", "softmax"), _function("#matmul.1", "matmul")],
        [("q", "#mul.0"), ("#mul.0", "#matmul.0"), ("k", "#matmul.0"), ("#matmul.0", "#softmax.0"),
         ("#softmax.0", "#matmul.1"), ("v", "#matmul.1"), ("#matmul.1", "o")],
    )  # fmt: skip
    assert tied_by_dtype(graph) == [{"q", "k", "v"}]


def test_one_producer_needs_no_tie() -> None:
    graph = _graph([_module("qkv"), _function("#sdpa.0", "scaled_dot_product_attention")], [("qkv", "#sdpa.0")])
    assert tied_by_dtype(graph) == []


def test_a_residual_stream_of_promoted_sums_is_not_tied() -> None:
    graph = _graph(
        [_module("a"), _module("b"), _function("#add.0", "add"), _module("c")],
        [("a", "#add.0"), ("b", "#add.0"), ("#add.0", "c")],
    )
    assert tied_by_dtype(graph) == []
    assert meet_in_one_op(graph) == [{"a", "b"}]


def test_a_promoted_sum_that_meets_a_product_ties_all_of_its_parts() -> None:
    graph = _graph(
        [_module("a"), _module("b"), _module("k"), _function("#add.0", "add"), _function("#matmul.0", "matmul")],
        [("a", "#add.0"), ("b", "#add.0"), ("#add.0", "#matmul.0"), ("k", "#matmul.0")],
    )
    assert tied_by_dtype(graph) == [{"a", "b", "k"}]


def test_what_no_plan_casts_is_marked() -> None:
    """The batch, a parameter that a function reads, a tensor made in the forward, an explicit dtype: all stay FP32."""
    product = _function("#matmul.0", "matmul")
    assert tied_by_dtype(_graph([_module("a"), product], [(INPUT, "#matmul.0"), ("a", "#matmul.0")])) == [{"a", INPUT}]

    reads_weight = _function("#linear.0", "linear", inputs=(TENSOR,), params=WEIGHT)
    assert tied_by_dtype(_graph([_module("a"), reads_weight], [("a", "#linear.0")])) == [{"a", INPUT}]

    zeros = _function("#zeros.0", "zeros", inputs=())
    graph = _graph([_module("a"), zeros, product], [("#zeros.0", "#matmul.0"), ("a", "#matmul.0")])
    assert tied_by_dtype(graph) == [{"a", INPUT}]

    named = _function("#softmax.0", "softmax", inputs=(TENSOR,), attrs={"dtype": "float32"})
    graph = _graph(
        [_module("a"), _module("v"), named, product],
        [("a", "#softmax.0"), ("#softmax.0", "#matmul.0"), ("v", "#matmul.0")],
    )
    assert tied_by_dtype(graph) == [{"v", INPUT}]


def test_a_sum_with_a_parameter_is_fp32_whatever_the_plan_says() -> None:
    position = _function("#add.0", "add", params=WEIGHT)
    graph = _graph(
        [_module("embed", "embedding"), position, _module("k"), _function("#matmul.0", "matmul")],
        [("embed", "#add.0"), ("#add.0", "#matmul.0"), ("k", "#matmul.0")],
    )
    assert tied_by_dtype(graph) == [{"k", INPUT}]


def test_scalars_and_integers_tie_nothing() -> None:
    scaled = _function("#mul.0", "mul", inputs=(TENSOR, SCALAR))
    graph = _graph(
        [_module("a"), _module("k"), scaled, _function("#matmul.0", "matmul")],
        [("a", "#mul.0"), (INPUT, "#mul.0", SCALAR), ("#mul.0", "#matmul.0"), ("k", "#matmul.0"),
         (INPUT, "#matmul.0", TOKENS)],
    )  # fmt: skip
    assert tied_by_dtype(graph) == [{"a", "k"}]


def test_modules_without_weights_follow() -> None:
    drop = Site("drop", "dropout", "module", "drop", inputs=(TENSOR,))
    graph = _graph(
        [_module("a"), _module("k"), drop, _function("#matmul.0", "matmul")],
        [("a", "drop"), ("drop", "#matmul.0"), ("k", "#matmul.0")],
    )
    assert tied_by_dtype(graph) == [{"a", "k"}]


def test_groups_that_share_a_site_are_one_but_the_mark_joins_nothing() -> None:
    graph = _graph(
        [_module(name) for name in "abcde"] + [_function(f"#matmul.{n}", "matmul") for n in range(4)],
        [("a", "#matmul.0"), ("b", "#matmul.0"), ("b", "#matmul.1"), ("c", "#matmul.1"), (INPUT, "#matmul.2"),
         ("d", "#matmul.2"), (INPUT, "#matmul.3"), ("e", "#matmul.3")],
    )  # fmt: skip
    assert tied_by_dtype(graph) == [{"a", "b", "c"}, {"d", INPUT}, {"e", INPUT}]


def test_a_module_that_feeds_itself_ends() -> None:
    graph = _graph(
        [_module("cell"), _module("k"), _function("#tanh.0", "tanh"), _function("#matmul.0", "matmul")],
        [
            ("cell", "#tanh.0"),
            ("#tanh.0", "cell"),
            ("#tanh.0", "#tanh.0"),
            ("#tanh.0", "#matmul.0"),
            ("k", "#matmul.0"),
        ],
    )
    assert tied_by_dtype(graph) == [{"cell", "k"}]
