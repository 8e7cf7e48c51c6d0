"""sources_of and meet_in_one_op on graphs written by hand."""

from amptune.apply import held_by, meet_in_one_op, sources_of
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


def test_what_follows_has_the_sources_of_its_inputs() -> None:
    drop = Site("drop", "dropout", "module", "drop", inputs=(TENSOR,))
    graph = _graph(
        [_module("q"), _module("k"), _function("#mul.0", "mul"), drop, _function("#matmul.0", "matmul")],
        [("q", "#mul.0"), ("#mul.0", "drop"), ("drop", "#matmul.0"), ("k", "#matmul.0")],
    )
    found = sources_of(graph)
    assert found["drop"] == {"q"}
    assert found["#matmul.0"] == {"q", "k"}


def test_outputs_that_meet_in_a_sum() -> None:
    graph = _graph(
        [_module("a"), _module("b"), _function("#add.0", "add"), _module("c")],
        [("a", "#add.0"), ("b", "#add.0"), ("#add.0", "c")],
    )
    assert meet_in_one_op(graph) == [{"a", "b"}]


def test_what_no_plan_casts_is_marked() -> None:
    """The batch, a tensor made in the forward, an explicit dtype: all stay FP32."""
    product = _function("#matmul.0", "matmul")
    graph = _graph([_module("a"), product], [(INPUT, "#matmul.0"), ("a", "#matmul.0")])
    assert sources_of(graph)["#matmul.0"] == {INPUT}

    zeros = _function("#zeros.0", "zeros", inputs=())
    graph = _graph([_module("a"), zeros, product], [("#zeros.0", "#matmul.0"), ("a", "#matmul.0")])
    assert sources_of(graph)["#matmul.0"] == {INPUT}

    named = _function("#softmax.0", "softmax", inputs=(TENSOR,), attrs={"dtype": "float32"})
    assert sources_of(_graph([_module("a"), named], [("a", "#softmax.0")]))["#softmax.0"] == {INPUT}


def test_a_tensor_that_a_function_reads_is_a_source_of_its_own() -> None:
    """A parameter, or a buffer, which the graph knows by the name of its input's source."""
    position = _function("#add.0", "add", inputs=(TENSOR,), params=(Param("position", TENSOR),))
    shift = _function("#add.1", "add", sources=("#add.0", "shift"))
    graph = _graph(
        [_module("embed", "embedding"), position, shift, _module("next")],
        [("embed", "#add.0"), ("#add.0", "#add.1"), ("#add.1", "next")],
    )
    assert held_by(graph, graph["next"]) == set()
    assert held_by(graph, graph["#add.1"]) == {"shift"}
    assert sources_of(graph)["#add.1"] == {"embed", "position", "shift"}


def test_scalars_and_integers_decide_nothing() -> None:
    scaled = _function("#mul.0", "mul", inputs=(TENSOR, SCALAR), sources=("a", "scale"))
    graph = _graph([_module("a"), scaled], [("a", "#mul.0"), (INPUT, "#mul.0", SCALAR), (INPUT, "#mul.0", TOKENS)])
    assert sources_of(graph)["#mul.0"] == {"a"}


def test_a_module_that_feeds_itself_ends() -> None:
    graph = _graph(
        [_module("cell"), _function("#tanh.0", "tanh")],
        [("cell", "#tanh.0"), ("#tanh.0", "cell"), ("#tanh.0", "#tanh.0")],
    )
    assert sources_of(graph)["#tanh.0"] == {"cell"}


def test_a_planned_module_decides_what_its_own_functions_give() -> None:
    """A norm written by hand, whose weight would be taken for a tensor that no plan casts."""
    scale = Site("norm#mul.0", "mul", "function", "norm", inputs=(TENSOR,), params=(Param("norm.weight", TENSOR),))
    graph = _graph([_module("a"), scale, _module("b")], [("a", "norm#mul.0"), ("norm#mul.0", "b")])
    assert sources_of(graph)["norm#mul.0"] == {"a", "norm.weight"}
    assert sources_of(graph, {"a", "norm", "b"})["norm#mul.0"] == {"norm"}
    assert meet_in_one_op(graph, {"a", "norm", "b"}) == []
