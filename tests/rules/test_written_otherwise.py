"""What a reading of unseen models found, in models that are written in other ways."""

from __future__ import annotations

from pathlib import Path

import pytest
from amptune_rules.graph._examples import model_file

from amptune.core.finding import Finding, Severity
from amptune.core.registry import load_rules
from amptune.core.rule import Example, GraphRule
from tests.rules.test_graph_rules import judge

RULES = {loaded.cls.code: loaded.cls for loaded in load_rules(GraphRule)}


def found(code: str, source: str, folder: Path, *, evidence: bool = True) -> tuple[Finding, ...]:
    example = Example("a model", source, options={"evidence": True} if evidence else {})
    return judge(example, folder, RULES[code]).findings


NOISE_LEVEL = "level = 0.02 * 40.0 ** x\nreturn self.fc(torch.log(level) / 4)"


@pytest.mark.parametrize(("batch", "count"), [("torch.rand(32, 64)", 0), ("torch.rand(32, 64) * 90", 1)])
def test_a_number_to_the_power_of_the_batch_goes_as_far_as_the_batch_does(
    batch: str, count: int, tmp_path: Path
) -> None:
    source = model_file(NOISE_LEVEL, batch=batch)
    assert len(found("G203", source, tmp_path)) == count
    assert not found("G204", source, tmp_path)


def test_a_logarithm_of_powers_of_an_output_can_be_that_of_zero(tmp_path: Path) -> None:
    assert found("G204", model_file("return torch.log(40.0 ** self.fc(x))"), tmp_path)


def test_a_number_as_a_new_tensor_is_that_number(tmp_path: Path) -> None:
    body = """
    a = F.softplus(self.fc(x).float()) + 1
    if float(x.sum()) > 1e9:  # a forward that torch.export does not take
        return a
    return torch.lgamma(a).sum(-1) - torch.lgamma(a.new_tensor(64))
    """
    assert not found("G213", model_file(body), tmp_path)


UNION = """
w, h, v, u = self.fc(x).sigmoid().chunk(4, -1)
inner = torch.minimum(w, v) * torch.minimum(h, u) - 0.1
return inner / (w * h + v * u - inner + {eps})
"""


@pytest.mark.parametrize(("eps", "count"), [("1e-10", 1), ("1e-4", 0)])
def test_an_eps_beside_what_only_the_user_knows_to_be_positive_has_to_be_one_in_fp16(
    eps: str, count: int, tmp_path: Path
) -> None:
    findings = found("G205", model_file(UNION.format(eps=eps)), tmp_path)
    assert [each.severity for each in findings] == [Severity.INFO] * count
    assert all("rounds to zero under autocast-fp16" in each.message for each in findings)


def test_an_eps_of_fp32_is_kept_in_fp32(tmp_path: Path) -> None:
    assert not found("G205", model_file(UNION.format(eps="1e-10").replace("sigmoid()", "float().sigmoid()")), tmp_path)


PAIRS = {
    "by indexing": "d = h[:, None] - h[None]\nreturn torch.sqrt((d * d).sum(-1))",
    "by unsqueeze, masked afterwards":
        "d = (h.unsqueeze(0) - h.unsqueeze(1)).square().sum(2).sqrt()\n"
        "return d.masked_fill(torch.eye(32, dtype=torch.bool, device=x.device), 1.0)",
    "of points in each cloud":
        "p = h.view(2, 16, 64)\nreturn (p[:, :, None] - p[:, None]).pow(2).mean(dim=(3,)) ** 0.5",
}  # fmt: skip
NO_PAIRS = {
    "of two tensors": "d = h[:, None] - self.fc(h)[None]\nreturn torch.sqrt((d * d).sum(-1))",
    "over all pairs at once": "d = h[:, None] - h[None]\nreturn torch.sqrt((d * d).sum())",
    "of neighbours": "d = h[1:] - h[:-1]\nreturn torch.sqrt((d * d).sum(-1))",
    "of pairs without the diagonal":
        "d = h[:, None] - h[None]\ni, j = torch.triu_indices(32, 32, 1, device=x.device)\n"
        "return torch.sqrt((d[i, j] ** 2).sum(-1))",
}  # fmt: skip


@pytest.mark.parametrize("body", PAIRS.values(), ids=PAIRS)
def test_a_row_is_no_distance_from_itself(body: str, tmp_path: Path) -> None:
    (finding,) = found("G206", model_file(f"h = self.fc(x)\n{body}"), tmp_path)
    assert finding.severity is Severity.WARNING
    assert "a row and itself" in finding.message


@pytest.mark.parametrize("body", NO_PAIRS.values(), ids=NO_PAIRS)
def test_other_distances_are_zero_by_chance_alone(body: str, tmp_path: Path) -> None:
    (finding,) = found("G206", model_file(f"h = self.fc(x)\n{body}"), tmp_path)
    assert finding.severity is Severity.INFO


VARIANCE = """
mean = x.mean(-1, keepdim=True)
return self.fc((x - mean) * torch.rsqrt((x ** 2).mean(-1, keepdim=True) - mean ** 2 + 1e-6))
"""


@pytest.mark.parametrize(("batch", "count"), [("500 + torch.randn(32, 64)", 1), ("torch.randn(32, 64)", 0)])
def test_a_variance_by_two_means_is_judged_by_the_means_of_the_batch(batch: str, count: int, tmp_path: Path) -> None:
    assert len(found("G206", model_file(VARIANCE, batch=batch), tmp_path)) == count


PRODUCT = """
class Product(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda"{cast})
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return torch.mm(x, weight)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight.t(), x.t() @ grad


class Model(nn.Module)"""


@pytest.mark.parametrize(("cast", "count"), [(", cast_inputs=torch.float32", 2), ("", 0)])
def test_products_of_a_function_that_casts_its_inputs_up_stay_in_fp32(cast: str, count: int, tmp_path: Path) -> None:
    body = "y = Product.apply(self.fc(x), self.a)\nreturn Product.apply(y, self.b)"
    init = "self.fc = nn.Linear(256, 256)\nself.a, self.b = (nn.Parameter(torch.eye(256)) for _ in range(2))"
    source = model_file(body, init=init, batch="torch.randn(256, 256)")
    source = source.replace("class Model(nn.Module)", PRODUCT.format(cast=cast).lstrip())
    findings = found("G303", source, tmp_path)
    lines = source.splitlines()
    told = [line for each in findings for line in each.evidence.get("lines", [each.location.line])]
    assert ["Product.apply" in lines[line - 1] for line in told] == [True] * count
    assert len(set(told)) == count


def test_a_dimension_that_an_einsum_merges_is_told_by_its_axes(tmp_path: Path) -> None:
    body = """
    picks = self.pick(x).view(2048, 6, 339)
    rows = torch.einsum("nec,nd->ecd", picks, x)
    return torch.einsum("nec,ecd->nd", picks, rows)
    """
    source = model_file(body, init="self.pick = nn.Linear(512, 2034)", batch="torch.randn(2048, 512)")
    told = [each.message for code in ("G101", "G103") for each in found(code, source, tmp_path)]
    assert len(told) == 2
    assert all("it is 6 x 339, and aligned with 344 for 339 (+1.5% work)" in message for message in told)


RECOMPUTED = """
class Gated(torch.autograd.Function):
    @staticmethod
    {forward_by}
    def forward(ctx, x, gate, weight):
        ctx.save_for_backward(x, gate, weight)
        return torch.mm(x * gate, weight)

    @staticmethod
    {backward_by}
    def backward(ctx, grad):
        x, gate, weight = ctx.saved_tensors
        inner = grad.mm(weight.t(){cast})
        return inner * gate, (inner * x).sum(0), (x * gate){cast}.t().mm(grad)


class Model(nn.Module)"""
BY = {
    "forward_by": '@torch.amp.custom_fwd(device_type="cuda")',
    "backward_by": '@torch.amp.custom_bwd(device_type="cuda")',
}
BARE = {"forward_by": "", "backward_by": ""}


@pytest.mark.parametrize(
    ("by", "cast", "count"),
    [(BARE, "", 1), (BARE, ".to(grad.dtype)", 0), (BY, "", 0)],
    ids=["bare", "cast", "decorated"],
)
def test_a_backward_that_autocast_does_not_reach_is_tried_with_a_gradient_of_16_bits(
    by: dict[str, str], cast: str, count: int, tmp_path: Path
) -> None:
    body = "return self.out(Gated.apply(self.fc(x), self.gate, self.weight))"
    init = "self.fc, self.out = nn.Linear(64, 64), nn.Linear(64, 8)\n"
    init += "self.gate, self.weight = nn.Parameter(torch.ones(64)), nn.Parameter(torch.eye(64))"
    source = model_file(body, init=init).replace("class Model(nn.Module)", RECOMPUTED.format(cast=cast, **by).lstrip())
    findings = found("G301", source, tmp_path)
    assert [each.severity for each in findings] == [Severity.ERROR] * count
    assert all("its mm of a 16-bit gradient" in each.message for each in findings)


def test_a_backward_that_computes_a_hidden_layer_again_may_have_it_in_fp32(tmp_path: Path) -> None:
    again = RECOMPUTED.format(cast=".to(grad.dtype)", **BARE).replace(
        "inner = grad", "hidden = x.mm(weight)\n        inner = (grad * (hidden > 0))"
    )
    body = "return self.out(Gated.apply(self.norm(x), self.gate, self.weight))"
    init = "self.norm, self.out = nn.LayerNorm(64), nn.Linear(64, 8)\n"
    init += "self.gate, self.weight = nn.Parameter(torch.ones(64)), nn.Parameter(torch.eye(64))"
    source = model_file(body, init=init).replace("class Model(nn.Module)", again.lstrip())
    assert not found("G301", source, tmp_path)


@pytest.mark.parametrize(
    ("product", "count"),
    [
        ("(h * 32).t() @ (h / 0.125)", 1),
        ("torch.einsum('nd,ne->de', 300 * h, h)", 1),
        ("(16 * h.relu()).t() @ (16 * h.relu())", 1),
        ("(h / 32).t() @ (h * 32)", 0),
        ("h.t() @ h * 1024", 0),
        ("(32 * h).t().float() @ (32 * h).float()", 0),
    ],
)
def test_factors_that_literals_raise_before_a_long_product(product: str, count: int, tmp_path: Path) -> None:
    body = "h = self.fc(x)\n"
    body += (
        f"with torch.autocast('cuda', enabled=False):\n    return {product}"
        if "float" in product
        else f"return {product}"
    )
    findings = found("G207", model_file(body, batch="torch.randn(512, 64)"), tmp_path)
    assert [each.severity for each in findings] == [Severity.INFO] * count


def test_a_variance_of_windows_is_not_told_to_use_var(tmp_path: Path) -> None:
    body = "a = F.avg_pool2d(x, 3, 1)\nreturn (F.avg_pool2d(x ** 2, 3, 1) - a ** 2) * self.w"
    source = model_file(body, init="self.w = nn.Parameter(torch.ones(()))", batch="torch.rand(4, 3, 32, 32)")
    (finding,) = found("G218", source, tmp_path)
    assert "use var" not in finding.message
    assert "clamp the difference at zero" in finding.message


def test_an_outer_product_of_vectors_is_no_product_of_matrices_under_autocast(tmp_path: Path) -> None:
    body = (
        "turns = torch.{name}(torch.arange(0.0, 1280.0, 40.0), torch.rand(32))\nreturn self.fc(x) * turns.sin().sum()"
    )
    for name in ("ger", "outer"):
        assert not found("G211", model_file(body.format(name=name)), tmp_path)


def test_a_loss_that_raises_is_in_no_format(tmp_path: Path) -> None:
    loss = "sum(F.binary_cross_entropy(output, t) for t in (torch.ones_like(output), torch.zeros_like(output)))"
    source = model_file("return torch.sigmoid(self.fc(x))", loss=loss)
    assert found("G401", source, tmp_path)
    assert not found("G212", source, tmp_path)


def test_a_narrow_layer_of_a_sequential_has_its_own_share_of_the_work(tmp_path: Path) -> None:
    init = "self.fc = nn.Sequential(nn.Linear(1024, 1020), nn.ReLU(), nn.Linear(1020, 8192), nn.Linear(8192, 11))"
    source = model_file("return self.fc(x)", init=init, batch="torch.randn(8192, 1024)")
    told = {each.evidence["value"]: each for each in found("G102", source, tmp_path)}
    assert {value: each.severity for value, each in told.items()} == {1020: Severity.WARNING, 11: Severity.INFO}
    assert told[11].evidence["flops_share"] < 0.01 < told[1020].evidence["flops_share"]  # not that of the whole line


@pytest.mark.parametrize(("rows", "sizes"), [(16384, [61]), (64, [])])
def test_a_narrow_layer_is_told_where_padding_saves_a_part_of_the_step(
    rows: int, sizes: list[int], tmp_path: Path
) -> None:
    init = (
        "self.fc = nn.Sequential(nn.Linear(2048, 2048), nn.Linear(2048, 2048), nn.Linear(2048, 2048))\n"
        "self.head = nn.Linear(2048, 61)"
    )
    source = model_file("return self.head(self.fc(x))", init=init, batch=f"torch.randn({rows}, 2048)")
    findings = found("G102", source, tmp_path)
    assert [each.evidence["value"] for each in findings] == sizes
    assert all(each.severity is Severity.INFO and each.evidence["flops_share"] < 0.01 for each in findings)


@pytest.mark.parametrize(("width", "size"), [(100, 104), (1004, 1024)])
def test_a_size_for_fp8_too_is_advised_where_it_is_next_to_no_work(width: int, size: int, tmp_path: Path) -> None:
    source = model_file(
        "return self.fc(x)", init=f"self.fc = nn.Linear(1024, {width})", batch="torch.randn(8192, 1024)"
    )
    (finding,) = found("G102", source, tmp_path)
    assert finding.evidence["padded"] == size
    assert ("FP8 takes it too" in finding.message) is (size % 16 == 0)


SCALE = "return self.down(F.silu(self.up(x) * self.scale))"


@pytest.mark.parametrize(("first", "told"), [(1.0, "autocast-bf16 and autocast-fp16"), (1e-6, "autocast-bf16")])
def test_a_scale_that_fp16_does_not_hold_is_left_in_fp32_there(first: float, told: str, tmp_path: Path) -> None:
    init = (
        "self.up = nn.Linear(64, 1024)\nself.down = nn.Linear(1024, 64)\n"
        f"self.scale = nn.Parameter(torch.full((1024,), {first}))"
    )
    (finding,) = found("G306", model_file(SCALE, init=init, batch="torch.randn(65536, 64)"), tmp_path)
    assert f"({told})" in finding.message


def test_what_is_read_in_fp32_alone_is_promoted_for_nothing_more(tmp_path: Path) -> None:
    init = (
        "self.up = nn.Linear(64, 1024)\nself.down = nn.Linear(1024, 64)\n"
        "self.register_buffer('mask', torch.zeros(1024))"
    )
    body = "scores = self.up(x) + self.mask\nreturn self.down(F.softmax(scores{cast}, dim=-1).type_as(x))"
    for cast, count in ((".float()", 0), ("", 1)):
        source = model_file(body.format(cast=cast), init=init, batch="torch.randn(65536, 64)")
        assert len(found("G306", source, tmp_path)) == count


AXES = {
    "by meshgrid":
        "y, u = torch.meshgrid(torch.arange(8), torch.arange(640), indexing='ij')\ngrid = torch.stack([u, y])",
    "by broadcasting": "grid = torch.cat([torch.arange(8)[:, None].expand(8, 640), torch.arange(640)[None]], 0)",
}  # fmt: skip


@pytest.mark.parametrize("body", AXES.values(), ids=AXES)
def test_the_axes_of_a_grid_are_integers_too(body: str, tmp_path: Path) -> None:
    source = model_file(f"h = self.fc(x)\n{body}\nreturn h.mean() + grid.to(h.dtype)")
    (finding,) = found("G211", source, tmp_path)
    assert "integers 0 to 639 are rounded to bf16" in finding.message


@pytest.mark.parametrize(
    ("made", "severity"),
    [("torch.full_like(h, -1e9)", Severity.ERROR), ("h.new_full((64,), -1e9).expand_as(h)", Severity.ERROR),
     ("torch.full(h.shape, -1e9, device=x.device).to(h.dtype)", Severity.WARNING),
     ("-1e9", Severity.WARNING)],
)  # fmt: skip
def test_a_tensor_that_is_filled_in_fp16_raises_where_a_cast_gives_infinity(
    made: str, severity: Severity, tmp_path: Path
) -> None:
    findings = found("G201", model_file(f"h = self.fc(x)\nreturn torch.where(x > 0, h, {made})"), tmp_path)
    assert [each.severity for each in findings] == [severity]
    assert ("raises" in findings[0].message) is (severity is Severity.ERROR)


GRAM = "h = self.fc(x).relu().view(2, 2048, 64)\n"


@pytest.mark.parametrize(
    ("product", "severities"),
    [("torch.einsum('bnc,bnd->bcd', h, h) / 2048", [Severity.WARNING]),
     ("(h.transpose(1, 2) @ h).div(2048)", [Severity.WARNING]),
     ("(h[:, :64].mT @ h[:, :64]) / 64", [Severity.INFO]),
     ("(h / 64).transpose(1, 2) @ (h / 64)", []),
     ("h.float().tanh().transpose(1, 2) @ h.float().tanh()", []),
     ("h[:, :64].mT @ h[:, 64:128]", [])],
)  # fmt: skip
def test_a_product_of_a_matrix_with_itself_sums_squares(
    product: str, severities: list[Severity], tmp_path: Path
) -> None:
    source = model_file(f"{GRAM}return {product}", batch="torch.randn(4096, 64)")
    assert [each.severity for each in found("G214", source, tmp_path)] == severities


def test_few_columns_are_not_padded_for_fp8(tmp_path: Path) -> None:
    init = "self.fc = nn.Sequential(nn.Linear(64, {n}), nn.Linear({n}, 64))"
    for columns, count in ((8, 0), (200, 1)):
        source = model_file("return self.fc(x)", init=init.format(n=columns), batch="torch.randn(4096, 64)")
        assert bool(found("G108", source, tmp_path)) is bool(count)
