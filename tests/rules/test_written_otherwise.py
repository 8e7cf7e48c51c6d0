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


@pytest.mark.parametrize(("most", "codes"), [(9000, {"G201"}), (40, set())])
def test_a_logarithm_of_factorials_of_the_batch_is_beyond_fp16_and_not_at_an_end_of_its_domain(
    most: int, codes: set[str], tmp_path: Path
) -> None:
    body = "rate = self.fc(x)\nseen = (counts + 0.5).to(rate.dtype)\nreturn rate * seen - torch.lgamma(seen)"
    batch = f"(torch.randn(32, 64), torch.randint(0, {most}, (32, 64)))"
    source = model_file(body, takes="x, counts", batch=batch)
    assert {code for code in ("G201", "G213") if found(code, source, tmp_path)} == codes


def test_the_end_of_the_domain_of_a_logarithm_of_factorials_is_at_zero(tmp_path: Path) -> None:
    (finding,) = found("G213", model_file("return torch.lgamma(torch.relu(self.fc(x)))"), tmp_path)
    assert "below 1" not in finding.message


@pytest.mark.parametrize(("length", "count"), [(400, 1), (200, 0)])
def test_squares_of_places_in_fp16_are_infinite_in_every_step(length: int, count: int, tmp_path: Path) -> None:
    body = f"""
    share = self.fc(x).softmax(-1).half()
    place = torch.arange({length}, device=x.device, dtype=torch.float16)
    return (share * (place * place)).sum(-1)
    """
    source = model_file(body, init=f"self.fc = nn.Linear(64, {length})")
    findings = [each for each in found("G214", source, tmp_path) if "every step" in each.message]
    assert len(findings) == count


SUMS_OF_SQUARES = "h = {made}\nreturn torch.einsum('nct,nct->nc', h, h) / h.shape[-1]"


@pytest.mark.parametrize(
    ("made", "length", "says"),
    [
        ("F.instance_norm(self.fc(x))", 80000, "80000 squares are summed"),
        ("F.instance_norm(self.fc(x))", 4000, None),
        ("self.fc(x)", 4000, "inputs of size 4.05"),
    ],
)
def test_sums_of_squares_are_beyond_fp16_from_smaller_numbers_on_the_more_they_are(
    made: str, length: int, says: str | None, tmp_path: Path
) -> None:
    source = model_file(
        SUMS_OF_SQUARES.format(made=made), init="self.fc = nn.Conv1d(4, 8, 1)", batch=f"torch.randn(2, 4, {length})"
    )
    findings = found("G214", source, tmp_path)
    assert len(findings) == (says is not None)
    assert all(str(says) in each.message for each in findings)


def test_a_mean_that_fp16_does_not_have_is_no_mask(tmp_path: Path) -> None:
    body = "h = self.fc(x)\nreturn h * self.spread.to(h.dtype) + self.middle.to(h.dtype)"
    init = "self.fc = nn.Linear(64, 64)\nself.register_buffer('middle', torch.full((64,), 86000.0))\n"
    init += "self.register_buffer('spread', torch.rand(64))"
    (finding,) = found("G201", model_file(body, init=init), tmp_path)
    assert "finfo" not in finding.message
    (mask,) = found("G201", model_file("return self.fc(x).masked_fill(x > 0, -1e9).softmax(-1)"), tmp_path)
    assert "finfo" in mask.message


ROWS = """
score = self.fc(x)
row = (score[:, 0] * 70 + score[:, 1]).round().clamp(0, {most} - 1){cast}.long()
return {read}
"""


@pytest.mark.parametrize(
    "read", ["self.table(row)", "self.table.weight.index_select(0, row)", "self.table.weight[row]"]
)
@pytest.mark.parametrize(("most", "formats"), [(9000, 1), (200, 0)])
def test_rows_whose_numbers_16_bits_do_not_have(read: str, most: int, formats: int, tmp_path: Path) -> None:
    init = f"self.fc = nn.Linear(64, 2)\nself.table = nn.Embedding({most}, 16)"
    source = model_file(ROWS.format(most=most, cast="", read=read), init=init)
    assert len(found("G211", source, tmp_path)) == formats


def test_rows_whose_numbers_are_worked_out_in_fp32_and_columns_of_a_table_are_no_matter(tmp_path: Path) -> None:
    init = "self.fc = nn.Linear(64, 2)\nself.table = nn.Embedding(9000, 16)"
    with_cast = ROWS.replace("self.fc(x)", "self.fc(x).float()")
    assert not found(
        "G211", model_file(with_cast.format(most=9000, cast="", read="self.table(row)"), init=init), tmp_path
    )
    columns = ROWS.format(most=16, cast="", read="self.table.weight[:, row]")
    assert not found("G211", model_file(columns, init=init), tmp_path)


KERNEL = """
z = {factor}self.fc(x)
size = (z * z).sum(-1)
away = size.unsqueeze(1) - 2.0 * torch.matmul(z, z.transpose(0, 1)) + size.unsqueeze(0)
return torch.exp(-away / (2 * F.softplus(self.width)))
"""


@pytest.mark.parametrize("factor", ["", "0.5 * ", "4 * "])
def test_distances_of_what_a_literal_scaled_before(factor: str, tmp_path: Path) -> None:
    init = "self.fc = nn.Linear(64, 64)\nself.width = nn.Parameter(torch.ones(()))"
    source = model_file(KERNEL.format(factor=factor), init=init)
    assert len(found("G218", source, tmp_path)) == 1
    assert not found("G203", source, tmp_path)


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("return (torch.sqrt(h.abs() * 0.02 + 1) - 1) / 0.005", 1),
        ("return 300 * (-1 + (1 + h * h).sqrt())", 1),
        ("return torch.sqrt(h.abs() + 1) - 1 + 0.01 * h", 0),
        ("return (torch.sqrt(h.float().abs() * 0.02 + 1) - 1) / 0.005", 0),
    ],
)
def test_one_less_than_a_root_near_one_times_a_large_number(line: str, count: int, tmp_path: Path) -> None:
    assert len(found("G218", model_file(f"h = self.fc(x)\n{line}"), tmp_path)) == count


@pytest.mark.parametrize(
    ("after", "count"),
    [
        ("return ((2e-9 * x - small) / 2e-9).pow(2)", 1),
        ("return (x * 1e-9 + small) * 1e9", 1),
        ("return ((x + small) / 8).pow(2)", 0),
    ],
)
def test_a_term_that_vanishes_matters_where_its_sum_is_raised(after: str, count: int, tmp_path: Path) -> None:
    source = model_file(f"small = torch.sigmoid(self.fc(x)) * 2e-9\nsmall = small.float()\n{after}")
    assert len(found("G202", source, tmp_path)) == count


VARIANCES = """
h = torch.sigmoid(self.fc(x)).view(32, 1, 8, 8).float()
one = torch.ones(1, 1, 3, 3, device=x.device)
total, squares = F.conv2d(h, one, padding=1), F.conv2d(h.square(), one, padding=1)
{spread}
return spread.sum((1, 2, 3))
"""


@pytest.mark.parametrize(
    ("spread", "count"),
    [
        ("m = total / 9\nspread = squares + m * m * 9 - 2 * m * total", 1),
        ("spread = (squares - total * total / 9) / 8", 1),
        ("spread = 0.5 * (total * total - squares)", 0),  # pairs of a factorisation machine
        ("spread = squares + total * total / 9", 0),
    ],
)
def test_variances_of_windows_in_several_terms(spread: str, count: int, tmp_path: Path) -> None:
    findings = found("G218", model_file(VARIANCES.format(spread=spread)), tmp_path)
    assert len(findings) == count, [str(each) for each in findings]


CORRELATION = """
seen = F.grid_sample(x.view(32, 1, 8, 8), torch.tanh(self.fc(x)).view(32, 8, 4, 2).float(), align_corners=False)
one = torch.ones(1, 1, 3, 3, device=x.device)
a, b = F.conv2d(seen, one), F.conv2d(y.view(32, 1, 8, 8)[..., :4], one)
both = F.conv2d(seen * y.view(32, 1, 8, 8)[..., :4], one)
cross = both - a * b / 9
return cross * cross
"""


@pytest.mark.parametrize(("most", "count"), [("1", 0), ("90", 1)])
def test_a_covariance_of_images_is_bounded_by_them(most: str, count: int, tmp_path: Path) -> None:
    batch = f"({most} * torch.rand(32, 64), {most} * torch.rand(32, 64))"
    source = model_file(CORRELATION, takes="x, y", batch=batch)
    assert len(found("G214", source, tmp_path)) == count


RECURRENCE = """
keep, add = self.fc(x).float().chunk(2, -1)
log_keep = F.pad(F.logsigmoid(keep).cumsum(1), (0, 0, 1, 0))[:, 1:]
entering = {entering}
state = log_keep + torch.logcumsumexp(entering - log_keep, 1)
return self.out(torch.exp(state))
"""


@pytest.mark.parametrize(("entering", "count"), [("torch.log1p(add.relu()) + F.logsigmoid(-keep)", 0), ("add", 1)])
def test_a_recurrence_in_logarithms_is_as_large_as_what_enters_it(entering: str, count: int, tmp_path: Path) -> None:
    source = model_file(
        RECURRENCE.format(entering=entering),
        init="self.fc = nn.Linear(64, 128)\nself.out = nn.Linear(64, 64)",
        batch="torch.randn(4, 16, 64)",
    )
    assert len(found("G203", source, tmp_path)) == count


@pytest.mark.parametrize(("rest", "count"), [("1 - seen", 0), ("1 - share", 1)])
def test_all_of_it_and_what_is_not_of_it_so_far_are_never_zero_together(rest: str, count: int, tmp_path: Path) -> None:
    body = f"""
    share = self.fc(x).sigmoid().float()
    order = share.argsort(-1, descending=True)
    seen = (x > 0).float().gather(-1, order)
    union = ({rest}).cumsum(-1) + seen.sum(-1, keepdim=True)
    return (share * (1 - seen / union)).sum(-1)
    """
    assert len(found("G205", model_file(body), tmp_path)) == count


POWER = """
spectrum = torch.stft(x, 512, 128, window=self.window, return_complex=True)
power = {power}
return self.fc(torch.einsum("mf,bft->btm", self.bands, power))
"""


@pytest.mark.parametrize(
    ("power", "loud", "count"),
    [
        ("spectrum.abs().pow(2)", "1", 1),
        ("spectrum.abs().pow(2)", "1e-2", 0),
        ("torch.log1p(spectrum.abs().pow(2))", "1", 0),
        ("(spectrum.abs().pow(2) - 3).sin() / (x.abs().amax() + 1e-8)", "1", 0),
    ],
)
def test_powers_of_a_spectrum_that_a_product_with_bands_casts_to_fp16(
    power: str, loud: str, count: int, tmp_path: Path
) -> None:
    init = "self.fc = nn.Linear(40, 8)\nself.register_buffer('bands', torch.rand(40, 257))"
    init += "\nself.register_buffer('window', torch.hann_window(512))"
    source = model_file(POWER.format(power=power), init=init, batch=f"{loud} * (2 * torch.rand(4, 8000) - 1)")
    assert len(found("G201", source, tmp_path)) == count


@pytest.mark.parametrize(
    ("row", "count"), [("score.sigmoid() * 100", 0), ("score.round().clamp(0, 200)", 0), ("score.sigmoid() * 8999", 1)]
)
def test_the_first_rows_of_a_large_table_have_numbers_that_16_bits_have(row: str, count: int, tmp_path: Path) -> None:
    init = "self.fc = nn.Linear(64, 64)\nself.table = nn.Embedding(9000, 16)"
    source = model_file(f"score = self.fc(x)[:, 0]\nreturn self.table(({row}).long())", init=init)
    assert len(found("G211", source, tmp_path)) == count


@pytest.mark.parametrize(("size", "count"), [("h.abs()", 1), ("h.abs().clamp(min=2)", 0)])
def test_one_less_than_a_root_of_what_is_not_near_one_has_its_digits(size: str, count: int, tmp_path: Path) -> None:
    source = model_file(f"h = self.fc(x)\nreturn 300 * (torch.sqrt(1 + {size}) - 1)")
    assert len(found("G218", source, tmp_path)) == count


@pytest.mark.parametrize(
    ("spread", "count"),
    [
        ("squares - mean * mean", 1),
        ("squares[:, None] - (mean * mean)[:, None]", 1),
        ("squares[None] - (mean * mean)[:, None]", 0),
        ("squares[None] - 2 * mean[None] * mean[:, None] + (mean * mean)[:, None]", 0),
        ("(squares * 64)[None] - (mean * mean * 64)[:, None]", 0),
    ],
)
def test_a_mean_of_squares_of_one_row_and_the_mean_of_another_are_no_variance(
    spread: str, count: int, tmp_path: Path
) -> None:
    body = f"h = torch.sigmoid(self.fc(x)).float()\nsquares, mean = (h * h).mean(-1), h.mean(-1)\nreturn {spread}"
    assert len(found("G218", model_file(body), tmp_path)) == count


@pytest.mark.parametrize(("added", "count"), [("1e-9", 1), ("1.0", 0)])
@pytest.mark.parametrize(("code", "function"), [("G204", "log"), ("G206", "sqrt")])
def test_only_an_eps_that_was_written_is_lost(code: str, function: str, added: str, count: int, tmp_path: Path) -> None:
    """Nothing is known of what has no kernel under autocast, nor is an eps where 1 is added to it."""
    body = f"return torch.{function}(torch.linalg.svdvals(self.fc(x)) + {added})"
    findings = found(code, model_file(body), tmp_path)
    assert sum("rounds to zero under autocast-fp16" in each.message for each in findings) == count
    assert not [each.message for each in findings if "eps of 0 " in each.message]
