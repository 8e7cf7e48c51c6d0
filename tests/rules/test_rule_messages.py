"""What messages of graph rules say where it depends on the model: the advice has to fit it."""

from __future__ import annotations

from pathlib import Path

import pytest
from amptune_rules.graph._examples import model_file

from amptune.core.registry import load_rules
from amptune.core.rule import Example, GraphRule
from tests.rules.test_graph_rules import judge

RULES = {loaded.cls.code: loaded.cls for loaded in load_rules(GraphRule)}


def messages(code: str, source: str, folder: Path) -> list[str]:
    return [finding.message for finding in judge(Example("a model", source), folder, RULES[code]).findings]


@pytest.mark.parametrize(
    ("images", "volumes", "advice"),
    [
        (64, 1, "memory_format=torch.channels_last"),
        (1, 64, "memory_format=torch.channels_last_3d"),
        (64, 16, "memory_format=torch.channels_last for images and torch.channels_last_3d for volumes"),
    ],
)
def test_the_memory_format_is_that_of_most_convolutions(images: int, volumes: int, advice: str, tmp_path: Path) -> None:
    forward = """
    for layer in self.images:
        x = layer(x)
    return self.volumes(x.view(2, 64, 4, 8, 32)).sum() + x.sum()
    """
    init = f"""
    self.images = nn.ModuleList(nn.Conv2d(64, 64, 3, padding=1) for _ in range({max(images // 8, 1)}))
    self.volumes = nn.Sequential(*(nn.Conv3d(64, 64, 3, padding=1) for _ in range({max(volumes // 8, 1)})))
    """
    if images == 1:
        init = init.replace("64, 64, 3, padding=1) for _ in range(1)", "64, 64, 1) for _ in range(1)")
    if volumes == 1:
        init = init.replace("nn.Conv3d(64, 64, 3, padding=1)", "nn.Conv3d(64, 8, 1)")
    source = model_file(forward, init=init, batch="torch.randn(2, 64, 32, 32)")
    assert [each.rpartition("use ")[2].partition(";")[0] for each in messages("G110", source, tmp_path)] == [advice]


@pytest.mark.parametrize(
    ("above", "expected"),
    [
        ("1", "x / 0 is infinite in"),
        ("h", "zero as far as its terms show: 0 / 0 is NaN in"),
        ("x.exp()", "x / 0 is infinite, and 0 / 0 NaN, in"),
    ],
)
def test_what_a_division_by_zero_gives(above: str, expected: str, tmp_path: Path) -> None:
    (message,) = messages(
        "G205", model_file(f"h = self.fc(x)\nreturn {above} / h.abs().sum(-1, keepdim=True)"), tmp_path
    )
    assert expected in message


def test_a_root_whose_eps_is_lost_is_still_reported(tmp_path: Path) -> None:
    forward = "return self.fc(x) / torch.sqrt(self.fc(x).mean(-1, keepdim=True) + 1e-9)"
    (message,) = messages("G205", model_file(forward), tmp_path)
    assert "where a format rounds its eps to zero; make it larger" in message
    assert not messages("G205", model_file(forward.replace("1e-9", "1e-3")), tmp_path)


@pytest.mark.parametrize(("bias", "kept"), [("self.place(x).expand(8, 4, 128, 128)", False), ("places", True)])
def test_a_bias_as_large_as_the_scores_is_read_by_a_fused_kernel_too(bias: str, kept: bool, tmp_path: Path) -> None:
    forward = f"""
    places = torch.arange(128, device=x.device).view(1, 1, 1, 128) / 128
    scores = x @ x.transpose(-2, -1) / 8 + {bias}
    return scores.softmax(-1) @ x
    """
    batch = "torch.randn(8, 4, 128, 64, requires_grad=True)"
    source = model_file(forward, init="self.place = nn.Linear(64, 128)", batch=batch)
    (message,) = messages("G408", source, tmp_path)
    assert ("with the mask or bias as attn_mask" in message) is kept
    assert ("as large as the scores" in message) is not kept


@pytest.mark.parametrize(("batch", "count"), [("torch.randint(1, 9, (32, 64)).float()", 0), ("torch.randn(32, 64)", 1)])
def test_counts_of_the_batch_keep_a_likelihood_off_the_end_of_its_domain(
    batch: str, count: int, tmp_path: Path
) -> None:
    source = model_file("return self.fc(x).sum() + torch.lgamma(x + 1).sum()", batch=batch)
    judged = judge(Example("counts", source, options={"evidence": True}), tmp_path, RULES["G213"])
    assert len(judged.findings) == count


@pytest.mark.parametrize(("exponent", "severity"), [("-torch.relu(h) * (x - x.mean())", "info"), ("h", "warning")])
def test_a_density_times_a_distance_is_taken_for_a_decay(exponent: str, severity: str, tmp_path: Path) -> None:
    forward = f"""
    h = self.fc(x)
    weights = 1 - torch.exp({exponent})
    return weights * x / (weights.sum(-1, keepdim=True) + 1e-4)
    """
    judged = judge(Example("a ray", model_file(forward)), tmp_path, RULES["G203"])
    assert [str(finding.severity) for finding in judged.findings] == [severity]


@pytest.mark.parametrize(("root", "count"), [("x", 0), ("self.fc(x)", 1)])
def test_a_root_that_no_gradient_passes_has_no_infinite_gradient(root: str, count: int, tmp_path: Path) -> None:
    forward = (
        f"return self.fc(x).sum() + ({root}.pow(2).sum(-1).sqrt() < 3).sum() + 0 * {root}.pow(2).sum(-1).sqrt().sum()"
    )
    found = messages("G206", model_file(forward), tmp_path)
    assert [each.partition(" [")[2] for each in found] == ["2 sites: #sqrt.0, #sqrt.1]"] * count


@pytest.mark.parametrize(("test", "count"), [("y[:, None] == y[None]", 0), ("y[:, None] == z[None]", 1)])
def test_everything_equals_itself(test: str, count: int, tmp_path: Path) -> None:
    forward = f"""
    y, z = x.argmax(-1), x.argmin(-1)
    same = ({test}).float()
    return self.fc(x).sum() + (same / same.sum(1, keepdim=True)).sum()
    """
    assert len(messages("G205", model_file(forward), tmp_path)) == count


@pytest.mark.parametrize(("factor", "count"), [("self.fc(x) ** 2", 1), ("self.fc(x)", 0)])
def test_a_product_of_what_is_not_negative_is_not_negative(factor: str, count: int, tmp_path: Path) -> None:
    forward = f"return torch.sqrt(F.linear(x ** 2, {factor}) + 1e-8)"
    found = messages("G206", model_file(forward), tmp_path)
    assert sum("the eps of 1e-08 under the root rounds to zero" in each for each in found) == count


@pytest.mark.parametrize(("op", "advice"), [("cumsum", "pass dtype=torch.float32"), ("logcumsumexp", ".float()")])
def test_advice_for_cumulative_ops_is_an_argument_that_they_have(op: str, advice: str, tmp_path: Path) -> None:
    source = model_file(f"return self.fc(x).{op}(0)", cast=".bfloat16()", batch="torch.randn(512, 64).bfloat16()")
    (message,) = messages("G217", source, tmp_path)
    assert advice in message


@pytest.mark.parametrize(("drawn", "count"), [("torch.randn_like(x)", 0), ("self.fc(x)", 1)])
def test_normal_random_numbers_are_bounded(drawn: str, count: int, tmp_path: Path) -> None:
    source = model_file(f"return self.fc(x).sum() + (1 / torch.exp(1.2 * {drawn} - 1.2)).sum()")
    assert len(messages("G203", source, tmp_path)) == count
    assert messages("G205", source, tmp_path) == [], "an exponential as denominator is G203's finding alone"


@pytest.mark.parametrize(("batch", "count"), [("torch.rand(32, 64) / 2", 0), ("torch.randn(32, 64)", 1)])
def test_a_difference_that_the_batch_keeps_off_zero_is_no_finding(batch: str, count: int, tmp_path: Path) -> None:
    source = model_file("return self.fc(x).sum() + (x / (1 - x)).sum()", batch=batch)
    judged = judge(Example("odds", source, options={"evidence": True}), tmp_path, RULES["G205"])
    assert len(judged.findings) == count


@pytest.mark.parametrize(("test", "count"), [("steps >= 0", 0), ("steps > 0", 1)])
def test_decays_to_the_past_count_the_present(test: str, count: int, tmp_path: Path) -> None:
    forward = f"""
    places = torch.arange(32)
    steps = (places[:, None] - places[None]).float()
    decay = torch.where({test}, torch.exp(steps * self.rate[:, None, None]), 0.0)
    return (decay / decay.sum(-1, keepdim=True).sqrt()) @ self.fc(x)
    """
    init = "self.fc = nn.Linear(64, 64)\nself.register_buffer('rate', torch.tensor([-0.1, -0.2]))"
    assert len(messages("G205", model_file(forward, init=init), tmp_path)) == count


@pytest.mark.parametrize("share", ["torch.sigmoid(self.fc(x))", "torch.sigmoid(self.fc(x)).clamp(1e-7, 1 - 1e-7)"])
def test_the_logarithm_of_what_a_sigmoid_leaves_is_told_of_logsigmoid(share: str, tmp_path: Path) -> None:
    (message,) = messages("G204", model_file(f"return torch.log(1 - {share})"), tmp_path)
    assert message.endswith("; use logsigmoid, or a loss with_logits")


def test_rows_that_differ_from_site_to_site_are_one_finding(tmp_path: Path) -> None:
    forward = """
    for rows, expert in zip((1000, 1001, 1002, 1003), self.experts, strict=True):
        x = torch.cat([x[:1] + expert(x[:rows]).sum(0), x[1:]])
    return x
    """
    source = model_file(
        forward,
        init="self.experts = nn.ModuleList(nn.Linear(256, 256) for _ in range(4))",
        batch="torch.randn(1024, 256)",
    )
    for code in ("G103", "G108"):
        (message,) = messages(code, source, tmp_path)
        assert "M = 1000 to 1003 rows" in message or "M = 1001 to 1003 rows" in message


def test_a_root_with_an_eps_is_not_said_to_round_to_zero_itself(tmp_path: Path) -> None:
    forward = """
    h = self.fc(x)
    c = h - h.mean(-1, keepdim=True)
    return c / torch.sqrt((c * c).mean(-1, keepdim=True) + 1e-12)
    """
    assert messages("G205", model_file(forward), tmp_path) == []
    (message,) = messages("G206", model_file(forward), tmp_path)
    assert "the eps of 1e-12 under the root rounds to zero under autocast-fp16" in message


def test_a_count_is_not_called_a_loss(tmp_path: Path) -> None:
    source = model_file(
        "return self.fc(x)", cast=".bfloat16()", batch="torch.randn(4096, 64).bfloat16()",
        loss="output.float().sum() / (output > 0).to(output.dtype).sum()",
    )  # fmt: skip
    assert messages("G212", source, tmp_path) == []
    (message,) = messages("G211", source, tmp_path)
    assert "a count of up to 262144 is rounded to bf16" in message


def test_a_detour_is_told_of_all_recipes_that_take_it(tmp_path: Path) -> None:
    source = model_file(
        "return self.down(torch.pow(self.up(x), 3))", batch="torch.randn(65536, 64)",
        init="self.up = nn.Linear(64, 1024)\nself.down = nn.Linear(1024, 64)",
    )  # fmt: skip
    (message,) = messages("G302", source, tmp_path)
    assert "(under autocast-bf16 and autocast-fp16)" in message


@pytest.mark.parametrize(("terms", "count"), [("p", 0), ("p.relu()", 1), ("p[:, :4]", 1)])
def test_an_eps_beside_the_sum_of_many_numbers_is_not_what_it_comes_down_to(
    terms: str, count: int, tmp_path: Path
) -> None:
    forward = f"""
    p = torch.sigmoid(self.fc(x))
    return 4 * p / (({terms}).sum(-1, keepdim=True) + 1e-5)
    """
    source = model_file(forward, cast=".half()", batch="torch.randn(32, 64).half()")
    found = [each for each in messages("G205", source, tmp_path) if "guards nothing" in each]
    assert len(found) == count


HEADS = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(64, 64), nn.Linear(64, 64)

    def heads(self, x):
        return x.view(2, 32, 2, 32).transpose(1, 2).contiguous()

    def forward(self, x):
        k = self.heads(self.k(x))
        q = self.heads({queries})
        return torch.softmax(q @ k.transpose(-2, -1){after}, -1)
"""


@pytest.mark.parametrize(("queries", "after", "count"), [("self.q(x) / 6", "", 0), ("self.q(x)", " / 6", 1)])
def test_a_scale_is_seen_through_what_lays_out_queries_and_keys(
    queries: str, after: str, count: int, tmp_path: Path
) -> None:
    source = model_file("return x", batch="torch.randn(2, 32, 64)")
    start, _, rest = source.partition("class Model")
    end = rest[rest.index("\n\n\ndef make_model") :]
    source = start + HEADS.format(queries=queries, after=after).strip() + end
    assert len(messages("G210", source, tmp_path)) == count


@pytest.mark.parametrize(("share", "what"), [("0.85 * d.mean()**2", "exactly zero"), ("d.mean()**2", "E[x^2]"),
                                             ("1.5 * d.mean()**2", "below zero"),
                                             ("0.85 * self.fc(x).mean()**2", "below zero")])  # fmt: skip
def test_a_scale_invariant_loss_is_not_below_zero(share: str, what: str, tmp_path: Path) -> None:
    source = model_file(f"d = self.fc(x).softmax(-1).log_softmax(-1)\nreturn torch.sqrt((d**2).mean() - {share})")
    (message,) = messages("G206", source, tmp_path)
    assert what in message


BUCKETS = """
far = (places[:, None] - places[None]).abs()
n = torch.log(far.float() / 8) * 8
buckets = torch.where(far < 8, far, (8 + n.{cast}).clamp(max=15).long())
return self.fc(x).sum() + self.bias(buckets).sum(){rest}
"""


@pytest.mark.parametrize(
    ("cast", "rest", "count"),
    [("to(torch.long)", "", 0), ("float()", "", 0), ("float()", " + self.fc(n[:, :8]).sum()", 1)],
)
def test_a_logarithm_of_places_that_makes_indices_is_none_of_the_loss(
    cast: str, rest: str, count: int, tmp_path: Path
) -> None:
    source = model_file(
        BUCKETS.format(cast=cast, rest=rest), init="self.fc, self.bias = nn.Linear(8, 8), nn.Embedding(32, 4)",
        batch="(torch.randn(8, 8), torch.randint(0, 100, (8,)))", takes="x, places",
    )  # fmt: skip
    assert len(messages("G204", source, tmp_path)) == count


@pytest.mark.parametrize(("reads", "count"), [("x.masked_fill(share > 0.1, 0)", 0), ("x * share", 1)])
def test_a_quotient_that_is_compared_alone_may_be_nan(reads: str, count: int, tmp_path: Path) -> None:
    source = model_file(f"h = self.fc(x)\nshare = x / h.norm(dim=-1, keepdim=True)\nreturn h + {reads}")
    assert len(messages("G205", source, tmp_path)) == count


def test_a_layout_that_is_predicted_to_lose_is_not_advised(tmp_path: Path) -> None:
    """Norms of groups take longer in channels_last than the transposes around the convolutions."""
    init = """
    self.first = nn.Conv2d(64, 64, 3, padding=1)
    self.rest = nn.Sequential(*[layer for _ in range(8) for layer in ({norm}, nn.Conv2d(64, 64, 3, padding=1))])
    """
    batch = "torch.randn(32, 64, 128, 128)"
    plain, grouped = (
        model_file("return self.rest(self.first(x))", init=init.format(norm=norm), batch=batch)
        for norm in ("nn.ReLU()", "*[nn.GroupNorm(32, 64) for _ in range(4)]")
    )
    assert messages("G110", plain, tmp_path)
    assert not messages("G110", grouped, tmp_path)


@pytest.mark.parametrize(("width", "count"), [(17, 0), (23, 1)])
def test_padding_that_costs_work_and_saves_nothing_is_not_advised(width: int, count: int, tmp_path: Path) -> None:
    """A small step waits for the processor: 17 numbers as 24 are work alone."""
    init = f"self.fc = nn.Linear({width}, 256)\nself.rest = nn.Sequential(*[nn.Linear(256, 256) for _ in range(4)])"
    source = model_file("return self.rest(self.fc(x))", init=init, batch=f"torch.randn(512, {width})")
    assert len(messages("G101", source, tmp_path)) == count
    assert not messages("G108", source, tmp_path)


def test_a_transform_in_bf16_raises_over_any_size_and_is_told_once(tmp_path: Path) -> None:
    source = model_file(
        "return self.spectrum(self.fc(x)).sum() + self.other(self.short(x)).sum()",
        init="self.fc, self.short = nn.Linear(64, 60), nn.Linear(64, 30)\n"
        "self.spectrum, self.other = Spectrum(), Spectrum()",
    )
    spectrum = "class Spectrum(nn.Module):\n    def forward(self, x):\n        return torch.fft.rfft(x).abs()\n\n\n"
    source = source.replace("class Model", spectrum + "class Model")
    (message,) = messages("G403", source, tmp_path)
    assert "a Fourier transform of bfloat16 and float16 raises" in message


@pytest.mark.parametrize(
    ("call", "what"),
    [("attention(x, x, x)", "products of queries, keys and values"),
     ("attention(x, x, x, need_weights=False)", "padded by a copy")],
)  # fmt: skip
def test_a_head_of_an_attention_that_returns_its_weights_is_not_padded(call: str, what: str, tmp_path: Path) -> None:
    source = model_file(f"return self.{call}[0]", init="self.attention = nn.MultiheadAttention(50, 1)",
                        batch="torch.randn(200, 128, 50)")  # fmt: skip
    (message,) = messages("G105", source, tmp_path)
    assert what in message


@pytest.mark.parametrize(("of", "trained"), [("self.fc(x).relu()", True), ("self.fc(x).relu().detach()", False)])
def test_a_logarithm_of_zero_has_a_gradient_where_something_is_trained(of: str, trained: bool, tmp_path: Path) -> None:
    (message,) = messages("G204", model_file(f"return self.fc(x) + torch.log({of})"), tmp_path)
    assert ("gradient" in message) is trained


@pytest.mark.parametrize(("dtype", "told"), [("torch.float32", True), ("q.dtype", False)])
def test_a_product_that_is_promoted_with_its_operand_is_named(dtype: str, told: bool, tmp_path: Path) -> None:
    source = model_file(
        f"q = self.fc(x)\nk = q * self.cos.to({dtype})\nreturn k @ k.t()",
        init="self.fc = nn.Linear(64, 64, dtype=torch.bfloat16)\nself.register_buffer('cos', torch.rand(64))",
        batch="torch.randn(512, 64).bfloat16()",
    )
    found = messages("G306", source, tmp_path)
    assert any("the matmul that reads it runs in float32 with it" in each for each in found) is told


@pytest.mark.parametrize(
    ("above", "advice"),
    [
        ("e", "use softmax"),
        ("(e + 1e-6)", "use softmax"),
        ("(1 + e)", "clamp its input"),
        ("(e + 1)", "clamp its input"),
    ],
)
def test_exponentials_with_a_number_beside_them_are_told_to_be_no_softmax(
    above: str, advice: str, tmp_path: Path
) -> None:
    forward = f"e = self.fc(x).exp()\na = {above}\nreturn a / a.sum(-1, keepdim=True)"
    (message,) = messages("G203", model_file(forward), tmp_path)
    assert advice in message
