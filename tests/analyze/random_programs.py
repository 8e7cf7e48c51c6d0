"""Random small forwards of ops that have bounds, with inputs at the ends of the ranges that are stated for them."""

from __future__ import annotations

import random
from typing import Any

import torch

STATED = ((0, 1), (-1, 1), (0.5, 2), (-3, 0), (0, 255), (-1e3, 1e3), (1e-6, 1e-3), (-2, -0.5), (0, 0), (-0.7, 4))
NUMBERS = (0, 0.5, -0.5, 1, -1, 2, -2, 3, 1e-3, 10, -10)
_SHAPE = (4, 4)


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ONE = _split("""\
torch.sigmoid({a}) torch.tanh({a}) torch.sign({a}) torch.floor({a}) torch.frac({a}) torch.trunc({a}) torch.exp({a})
torch.log1p({a}.abs()) torch.sqrt({a}.abs()) torch.reciprocal({a}) torch.abs({a}) torch.square({a}) torch.neg({a})
torch.erf({a}) torch.lgamma({a}) F.relu({a}) F.gelu({a}) F.silu({a}) F.selu({a}) F.hardswish({a}) F.elu({a},{c})
F.celu({a},{n}) F.softplus({a},{n}) F.softplus({a},{n},{c}) F.leaky_relu({a},{c}) F.hardtanh({a},{low},{high})
F.threshold({a},{c},{e}) F.rrelu({a},{low},{high},training=True) {a}.pow({k}) {a}.clamp({low},{high})
{a}.clamp(min={c}) {a}.half().double() {a}.int().double() {a}.bool().double() {a}.clamp(0,200).to(torch.uint8).double()
{a}.round() ix.double() (1-ix).double() (2**ix.abs()).double() (ix*100).to(torch.int8).double() (ix//2).double()
(ix%3).double() torch.arange(0,1,0.3,dtype=torch.float64) torch.logspace({c},1,4,dtype=torch.float64)
torch.linspace({c},1,4).double() {a}.sort({d})[1].double() {a}.argmax({d}).double() F.layer_norm({a},{a}.shape[-1:])
torch.nn.LeakyReLU({c})({a}) torch.atan({a}) torch.rsqrt({a}) torch.sinh({a}) torch.cosh({a}) torch.asinh({a})
torch.expm1({a}) torch.log({a}) torch.log2({a}.abs()) torch.exp2({a}) torch.logit({a},1e-6) torch.sin({a})
torch.sinc({a}) torch.nan_to_num({a}) F.mish({a}) F.softsign({a}) F.tanhshrink({a}) F.hardshrink({a},{c})
F.softshrink({a},abs({c})) F.logsigmoid({a}) F.relu6({a}) F.hardsigmoid({a}) torch.erfinv({a})
torch.special.xlog1py({a},{a}) torch.digamma({a}) torch.special.erfcx({a}) torch.special.entr({a})
torch.special.i0e({a}) {a}.remainder({n}) {a}.fmod({n}) torch.remainder({c},{a}) {a}**{k} {c}**{a} {a}.abs()**0.5
{a}.clamp(max={c}) {a}.bfloat16().double() {a}.float().double() {a}.to(torch.float16).float().double()
({a}>{c}).double() {a}.sgn() torch.hypot({a},{a}) torch.ldexp({a},ix) torch.float_power({a},{k}) torch.deg2rad({a})
{a}.positive() F.glu({a},{d}) F.group_norm({a}[None],2) F.instance_norm({a}[None])
F.batch_norm({a},None,None,training=True) F.rms_norm({a},{a}.shape[-1:]) F.local_response_norm({a}[None],2)
F.dropout({a},0.5) F.alpha_dropout({a},0.5) F.gumbel_softmax({a},dim={d}) Scale.apply({a})
torch.utils.checkpoint.checkpoint(torch.exp,{a},use_reentrant=False) torch.triu({a}) torch.tril({a},-1)
F.interpolate({a}[None,None],scale_factor=2,mode='bicubic')
F.interpolate({a}[None,None],scale_factor=2,mode='bilinear') torch.fft.fft({a}).real torch.fft.rfft({a}).abs()
torch.fft.irfft(torch.fft.rfft({a})) torch.fft.fft2({a}).imag
""")
_TWO = _split("""\
({a}-{b}) ({a}-{b}) ({a}-{b}) ({a}/{b}) ({a}/{b}) ({a}/{b}) ({a}*{b}) ({a}*{b}) ({a}+{b}) ({a}/({b}+1e-6))
torch.maximum({a},{b}) torch.minimum({a},{b}) torch.clamp({a},max={b}) {a}.clamp(min={b}) torch.sub({a},{b},alpha={c})
torch.add({a},{b},alpha={c}) torch.where({a}>{c},{a},{b}) torch.where(({a}>{c}).flip(0),{a},{b})
torch.where(({a}>{c}).T,{a},{b}) {a}.masked_fill({a}==0,{c}) torch.lerp({a},{b},{c}) {a}@{b} {a}@{b}.T
torch.addmm({a},{b},{a},beta={c},alpha={e}) torch.einsum('ij,kj->ik',{a},{b}) torch.einsum('ij,kl->',{a},{b})
torch.einsum('ij,jk,kl->il',{a},{b},{a}) torch.cdist({a},{b}) torch.div({a},{b},rounding_mode='floor') {a}//{c} {a}%{c}
torch.cat([{a},{b}]) torch.stack([{a},{b}]) F.prelu({a},{b}.reshape(-1)[:1]) F.l1_loss({a},{b}) F.mse_loss({a},{b})
F.cross_entropy({a},{b}) ({a}*{b}).sum({d})/({a}.norm(dim={d})*{b}.norm(dim={d})) torch.block_diag({a},{b})
F.conv_transpose2d({a}[None,None],{b}[None,None],stride=2) F.avg_pool2d({a}[None,None],3,1,1) torch.atan2({a},{b})
torch.remainder({a},{b}) torch.fmod({a},{b}) torch.pow({a}.abs(),{b}) torch.logaddexp({a},{b})
torch.logaddexp2({a},{b}) torch.xlogy({a},{b}) torch.copysign({a},{b}) torch.fmax({a},{b})
torch.addcmul({a},{b},{b},value={c}) torch.addcdiv({a},{b},{b},value={c}) torch.lerp({a},{b},{b})
torch.clamp({a},{b},{b}+1) torch.cross({a}[:3],{b}[:3],dim=0) torch.outer({a}.reshape(-1),{b}.reshape(-1))
torch.kron({a},{b}) torch.tensordot({a},{b},1) torch.dist({a},{b}) F.cosine_similarity({a},{b},dim={d})
F.pairwise_distance({a},{b}) F.kl_div({a},{b}) F.smooth_l1_loss({a},{b}) F.huber_loss({a},{b})
F.binary_cross_entropy_with_logits({a},{b}) F.poisson_nll_loss({a},{b}) F.gaussian_nll_loss({a},{b},{b}.abs())
F.soft_margin_loss({a},{b}) F.nll_loss({a},ix[:,0].abs()%2) F.cross_entropy({a},ix[:,0].abs()%2,label_smoothing=0.1)
F.multi_margin_loss({a},ix[:,0].abs()%2) F.triplet_margin_loss({a},{b},{b}.flip(0))
F.bilinear({a},{b},torch.ones(2,4,4).double()) F.linear({a},{b},{b}[0])
F.conv1d({a}[None],{b}[None,:,:3].transpose(0,1)[:2].repeat(1,4,1))
F.conv2d({a}[None,None],{b}[None,None,:3,:3],padding=1) F.scaled_dot_product_attention({a}[None],{b}[None],{a}[None])
F.max_pool2d({a}[None,None],2) F.lp_pool2d({a}[None,None].abs(),2,2) F.adaptive_avg_pool2d({a}[None,None],2)
F.layer_norm({a},{a}.shape[-1:],{b}[0],{b}[1]) F.embedding(ix.abs()%4,{a})
F.grid_sample({a}[None,None],{b}.reshape(1,2,4,2)) torch.where(ix>0,{a},{b}) {a}.masked_fill(ix>0,{c})
torch.complex({a},{b}).abs() {a}.scatter({d},ix.abs()%4,{b}) {a}.scatter_add({d},ix.abs()%4,{b})
{a}.index_add(0,torch.tensor([0,0,1,3]),{b},alpha={c}) {a}.scatter_reduce({d},ix.abs()%4,{b},'mean')
{a}.scatter_reduce({d},ix.abs()%4,{b},'amax',include_self=False) {a}.scatter_reduce({d},ix.abs()%4,{b},'prod')
{a}.index_put((torch.tensor([0,0]),),{b}[:2],accumulate=True) torch.baddbmm({a}[None],{b}[None],{b}[None])
{a}.index_copy(0,torch.tensor([1,2]),{b}[:2]) torch.searchsorted({a}.sort(-1)[0],{b}).double() torch.hstack([{a},{b}])
torch.addr({a},{b}[0],{b}[1],alpha={c}) torch.chain_matmul({a},{b}) torch.linalg.multi_dot([{a},{b},{a}])
torch.einsum('ij,ij->i',{a},{b}) torch.einsum('ii,jj->',{a},{b}) torch.heaviside({a},{b}) torch.nextafter({a},{b})
{a}.rsub({b})
""")
_LINES = _split("""\
{a}.sum({d}{k2}) {a}.mean({d}{k2}) {a}.amax({d}{k2}) {a}.max({d}{k2})[0] {a}.logsumexp({d}{k2}) {a}.var({d}{k2})
{a}.norm(dim={d}{k2}) {a}.norm({p},{d}{k2}) ({a}*{a}).sum({d}{k2}) {a}.square().mean({d}{k2}) {a}.abs().sum({d}{k2})
{a}.softmax({d}) F.normalize({a},dim={d}) F.normalize({a},p={p},dim={d}) {a}.cumsum({d}) {a}.cummax({d})[0]
{a}.sort({d}).values {a}.diff(dim={d}) {a}.topk(2,{d})[0] ({a}-{a}.amax({d}{k2})).exp() {a}/{a}.norm(dim={d}{k2})
{a}-{a}.mean({d}{k2}) {a}/{a}.sum({d}{k2}) {a}.square().mean({d}{k2})-{a}.mean({d}{k2}).square()
{a}.softmax(-1).amax({d}) ({a}*{a}.log()).sum({d}) {a}*({a}*{a}).sum({d}{k2}).rsqrt() {a}.prod({d}{k2})
{a}.std({d}{k2}) {a}.cumprod({d}) {a}.logcumsumexp({d}) {a}.log_softmax({d}) F.softmin({a},{d}) {a}.softmax({d}).log()
{a}.median({d}{k2})[0] {a}.quantile(0.3,{d}{k2}) {a}.kthvalue(2,{d})[0] {a}.amin({d}{k2}) {a}.aminmax(dim=0)[1]
{a}.cummin({d})[0] {a}.nansum({d}) {a}.var({d},unbiased=False{k2}) {a}.var(0,correction=2)
{a}[:1].var(0,unbiased=False) torch.var_mean({a},{d})[0] {a}.renorm(2,0,1)
({a}-{a}.mean({d},keepdim=True)).square().mean({d}{k2}) {a}/{a}.abs().sum({d}{k2}) {a}/({a}.amax({d}{k2})+1e-6)
torch.trapezoid({a},dim={d}) ({a}-{a}.mean({d},keepdim=True))/({a}.std({d},keepdim=True)+1e-5)
{a}*torch.rsqrt({a}.square().mean({d}{k2})+1e-6) {a}/{a}.square().sum({d}{k2}).sqrt()
{a}/{a}.norm(dim={d}{k2}).clamp(min=1e-3) {a}.exp()/{a}.exp().sum({d}{k2}) {a}/{a}.amax({d}{k2})
({a}-{a}.logsumexp({d}{k2})).exp() 1-{a}.softmax({d}) ({a}.softmax({d})*{a}).sum({d}{k2})
-({a}.softmax({d})*{a}.log_softmax({d})).sum({d}) {a}.cumsum({d})-{a} {a}.cumsum({d}).diff(dim={d})
{a}.sum({d},keepdim=True)-{a} {a}.cumsum({d}).flip({d}) {a}.square().sum({d}{k2})-{a}.square()
{a}.topk(2,{d})[0].sum({d})/{a}.sum({d}) ({a}-{a}.amin({d}{k2}))/({a}.amax({d}{k2})-{a}.amin({d}{k2})+1e-6)
{a}.std({d}{k2}).log() ({a}-{a}.flip({d}).amax({d}{k2})).exp() ({a}-{a}[:1].amax(0,keepdim=True)).exp()
({a}-{a}.T.amax({d}{k2})).exp() ({a}.T-{a}.amax({d}{k2})).exp() ({a}-{a}.amax({d}{k2})).softmax({d})
torch.linalg.vector_norm({a},{p},{d}{k2}) torch.cov({a}) torch.corrcoef({a})
({a}*{a}).mean({d}{k2})-{a}.mean({d}{k2})*{a}.mean({d}{k2}) ({a}*{a})[:2].mean(0)-{a}[:2].mean(0)**2
({a}[:2]**2).mean(0)-{a}.mean(0)**2 torch.sqrt({a}+{a}.square()+1)-{a} {a}+torch.sqrt({a}*{a}+{c})
{a}*{a}-2*{a}*{c}+{c}*{c} {a}*(1-{a}) {a}*(1-{a})+{a} torch.linalg.matrix_norm({a})
{a}.logsumexp({d}{k2})-{a}.amax({d}{k2}) {a}.exp().sum({d}{k2}).log()-{a}.amax({d}{k2})
""")
_OTHERWISE = _split("""\
{a}.flip({d}) {a}.roll(1,{d}) {a}.T {a}[:1] {a}[...,:1] {a}[1:] {a}[...,1:] {a}.reshape(-1) {a}.unsqueeze(0)
{a}.unsqueeze(-1) {a}.detach() {a}.expand(4,4) {a}.clone() {a}.reshape(4,4) {a}.gather(0,ix.abs()%4) {a}.repeat(1,2)
{a}.gather(1,ix.abs()%4) {a}.diagonal() {a}.chunk(2)[0] {a}.unbind()[1] {a}[torch.tensor([1,0])] {a}[:,0,None]
{a}.unfold(0,2,1) {a}.as_strided((4,4),(1,4)) {a}.expand(2,4,4)[1] {a}.repeat_interleave(2,{d}) {a}.swapaxes(0,1)
{a}.movedim(0,1) {a}.index_select({d},torch.tensor([2,0,0,1])) {a}.take(ix.abs()) {a}.rot90() {a}.narrow(0,1,2)
{a}.tile(2,1) F.pad({a},(1,1)) F.pad({a},(1,1),value={c}) F.pad({a}[None],(1,1),'reflect') F.unfold({a}[None,None],2)
F.pixel_shuffle({a}.reshape(1,4,2,2),2) {a}.diag_embed() torch.meshgrid({a}[0],{a}[1])[0] {a}.broadcast_to(2,4,4)
{a}[...,::2] {a}[ix%4] {a}.take_along_dim(ix.abs()%4,{d}) F.one_hot(ix.abs()%4,5).double()
{a}.squeeze().unflatten(0,(2,2)) torch.atleast_3d({a})
""")
_VIEWS = _split("""\
{a} {a}[:,3:] {a}[...,0] {a}.view(-1)[::2] {a}.select(0,1) {a}.unbind(0)[0] {a}.chunk(2,-1)[1] {a}.t() {a}.diagonal()
{a}.view(-1) {a}.transpose(0,1)[1:] {a}.detach() {a}.reshape(-1)[1:3] {a}.contiguous()[0] {a}.double() {a}.clone()
""")
_WRITES = _split("""\
{v}.fill_({c}) {v}.zero_() {v}.mul_({c}) {v}.add_({c}) {v}.copy_({v}.clone()*{c}) {v}.clamp_({low},{high}) {v}.exp_()
{v}.masked_fill_({v}>{c},{e}) {v}[{v}>{c}]={e} {v}[0]={c} {v}[...,-1]={c} {v}*={c} {v}[:1]+={c}
torch.add({v},{c},out={v}) {v}.index_fill_(0,torch.tensor([1]),{c})
{v}.index_put_((torch.tensor([1]),),torch.tensor({c}).double()) {v}.normal_() {v}.fill_diagonal_({c})
{v}.data.mul_({c}) F.elu_({v},{c}) {v}.scatter_(0,torch.zeros({v}.shape,dtype=torch.long),{c})
torch._foreach_mul_([{v}],{c}) torch._foreach_add_([{v},{v}],{c}) {v}.set_({v}.clone()*{c})
{v}.lerp_({v}.clone()+1,{c}) {v}.sqrt_() {v}.reciprocal_() {v}.pow_({k})
torch.max({v}*{c},dim=0,keepdim=True,out=({v},torch.zeros({v}.shape,dtype=torch.long))) {v}.cumsum_(0)
{v}.addcmul_({v},{v},value={c}) {v}.sub_({c}) {v}.div_({n}) {v}.t_().mul_({c}) {v}.neg_().sub_({c}) {v}.clamp_(min={c})
{v}.index_add_(0,torch.tensor([0]),{v}[:1]*{c}) {v}.uniform_({low},{high}) {v}.round_() {v}.relu_() {v}.sigmoid_()
{v}.remainder_({n}) {v}.tril_() {v}.copy_({v}.flip(0)*{c})
""")

FILE = """\
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 5 + 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 5


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, x, y, ix):
{lines}
        return ({outputs},)


def make_model():
    return Model()


def make_batch():
    return (torch.rand(4, 4).double(), torch.rand(4, 4).double(), torch.zeros(4, 4, dtype=torch.long)), None


def run(model, batch):
    return model(*batch[0])


def loss_fn(output, batch):
    return sum(each.sum() for each in output)
"""
INTEGERS = (-3, 4)


class Program:
    """One forward and what is stated of its inputs.

    Attributes:
        stated: ranges of ``x`` and ``y``; the integers ``ix`` lie within INTEGERS.
        results: names of what it gives, each a tensor times 1, as it was then and at the end.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self.stated = tuple(self._random.choice(STATED) for _ in range(2))
        self.results: list[str] = []
        self._lines: list[str] = []
        self._names = ["x", "y"]
        self._start = self.inputs()
        for number in range(self._random.randint(2, 7)):
            self._grow(number)
        self._keep([name for name in self._names if name not in "xy"])

    @property
    def text(self) -> str:
        """The model file."""
        lines = "\n".join(f"        {line}" for line in self._lines)
        return FILE.format(lines=lines, outputs=", ".join(self.results))

    def inputs(self) -> tuple[torch.Tensor, ...]:
        """Numbers at the ends of what is stated, at zeros and ones within, and between."""
        drawn = [self._drawn(low, high) for low, high in self.stated]
        return (*drawn, torch.randint(INTEGERS[0], INTEGERS[1] + 1, _SHAPE, generator=self._generator))

    def _drawn(self, low: float, high: float) -> torch.Tensor:
        ends = [
            low,
            low,
            high,
            high,
            *(each for each in (0.0, -0.0, 1.0, -1.0, 1e-7, 1e-320, (low + high) / 2) if low <= each <= high),
        ]
        picked = torch.tensor(ends).double()[torch.randint(len(ends), _SHAPE, generator=self._generator)]
        between = low + (high - low) * torch.rand(_SHAPE, generator=self._generator).double()
        share = torch.rand((), generator=self._generator)
        return torch.where(torch.rand(_SHAPE, generator=self._generator) < share, picked, between)

    def _grow(self, number: int) -> None:
        """Add a line that runs, of a few that are tried."""
        for _ in range(20):
            name = f"v{number}"
            line = self._line(name)
            names = self._run([*self._lines, *line])
            made = names.get(name)
            if isinstance(made, torch.Tensor) and made.is_floating_point() and 0 < made.numel() < 1000:
                self._lines += line
                self._names.append(name)
                self._keep([name])
                return

    def _line(self, name: str) -> list[str]:
        pick = self._random.choice
        low, high = sorted(pick(NUMBERS) for _ in range(2))
        words: dict[str, Any] = {
            "a": pick(self._names[-4:]), "b": pick(self._names[-4:]), "c": pick(NUMBERS), "e": pick(NUMBERS),
            "n": pick([each for each in NUMBERS if each]), "low": low, "high": high, "k": pick((0, 1, 2, 3, -1, -2)),
            "d": pick(("0", "1", "-1")), "p": pick(("1", "3", "float('inf')", "0", "-1")), "v": name,
            "k2": pick(("", ",keepdim=True", ",keepdim=True")),
        }  # fmt: skip
        if self._random.random() < 0.2 and words["a"] not in "xy":
            return [f"{name} = {pick(_VIEWS).format(**words)}", pick(_WRITES).format(**words)]
        return [f"{name} = {pick(pick((_ONE, _TWO, _TWO, _LINES, _LINES, _OTHERWISE))).format(**words)}"]

    def _keep(self, names: list[str]) -> None:
        for name in names:
            self.results.append(f"r{len(self.results)}")
            self._lines.append(f"{self.results[-1]} = {name} * 1.0")

    def _run(self, lines: list[str]) -> dict[str, Any]:
        names: dict[str, Any] = {}
        exec(FILE.partition("class Model")[0], names)
        names |= dict(zip(("x", "y", "ix"), (each.clone() for each in self._start), strict=True))
        try:
            with torch.no_grad():
                exec("\n".join(lines), names)
        except (RuntimeError, IndexError, TypeError, ValueError, AttributeError, UserWarning):
            return {}
        return names
