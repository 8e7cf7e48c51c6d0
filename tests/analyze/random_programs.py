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
{a}.clamp(min={c}) {a}.half().double() {a}.int().double() {a}.bool().double()
{a}.clamp(0,200).to(torch.uint8).double() {a}.round() ix.double() (1-ix).double() (2**ix.abs()).double()
(ix*100).to(torch.int8).double() (ix//2).double() (ix%3).double() torch.arange(0,1,0.3,dtype=torch.float64)
torch.logspace({c},1,4,dtype=torch.float64) torch.linspace({c},1,4).double() {a}.sort({d})[1].double()
{a}.argmax({d}).double() F.layer_norm({a},{a}.shape[-1:]) torch.nn.LeakyReLU({c})({a})
""")
_TWO = _split("""\
({a}-{b}) ({a}-{b}) ({a}-{b}) ({a}/{b}) ({a}/{b}) ({a}/{b}) ({a}*{b}) ({a}*{b}) ({a}+{b}) ({a}/({b}+1e-6))
torch.maximum({a},{b}) torch.minimum({a},{b}) torch.clamp({a},max={b}) {a}.clamp(min={b})
torch.sub({a},{b},alpha={c}) torch.add({a},{b},alpha={c}) torch.where({a}>{c},{a},{b})
torch.where(({a}>{c}).flip(0),{a},{b}) torch.where(({a}>{c}).T,{a},{b}) {a}.masked_fill({a}==0,{c})
torch.lerp({a},{b},{c}) {a}@{b} {a}@{b}.T torch.addmm({a},{b},{a},beta={c},alpha={e})
torch.einsum('ij,kj->ik',{a},{b}) torch.einsum('ij,kl->',{a},{b}) torch.einsum('ij,jk,kl->il',{a},{b},{a})
torch.cdist({a},{b}) torch.div({a},{b},rounding_mode='floor') {a}//{c} {a}%{c} torch.cat([{a},{b}])
torch.stack([{a},{b}]) F.prelu({a},{b}.reshape(-1)[:1]) F.l1_loss({a},{b}) F.mse_loss({a},{b})
F.cross_entropy({a},{b}) ({a}*{b}).sum({d})/({a}.norm(dim={d})*{b}.norm(dim={d})) torch.block_diag({a},{b})
F.conv_transpose2d({a}[None,None],{b}[None,None],stride=2) F.avg_pool2d({a}[None,None],3,1,1)
""")
_LINES = _split("""\
{a}.sum({d}{k2}) {a}.mean({d}{k2}) {a}.amax({d}{k2}) {a}.max({d}{k2})[0] {a}.logsumexp({d}{k2}) {a}.var({d}{k2})
{a}.norm(dim={d}{k2}) {a}.norm({p},{d}{k2}) ({a}*{a}).sum({d}{k2}) {a}.square().mean({d}{k2}) {a}.abs().sum({d}{k2})
{a}.softmax({d}) F.normalize({a},dim={d}) F.normalize({a},p={p},dim={d}) {a}.cumsum({d}) {a}.cummax({d})[0]
{a}.sort({d}).values {a}.diff(dim={d}) {a}.topk(2,{d})[0] ({a}-{a}.amax({d}{k2})).exp() {a}/{a}.norm(dim={d}{k2})
{a}-{a}.mean({d}{k2}) {a}/{a}.sum({d}{k2}) {a}.square().mean({d}{k2})-{a}.mean({d}{k2}).square()
{a}.softmax(-1).amax({d}) ({a}*{a}.log()).sum({d}) {a}*({a}*{a}).sum({d}{k2}).rsqrt()
""")
_OTHERWISE = _split("""\
{a}.flip({d}) {a}.roll(1,{d}) {a}.T {a}[:1] {a}[...,:1] {a}[1:] {a}[...,1:] {a}.reshape(-1) {a}.unsqueeze(0)
{a}.unsqueeze(-1) {a}.detach() {a}.expand(4,4) {a}.clone() {a}.reshape(4,4) {a}.gather(0,ix.abs()%4) {a}.repeat(1,2)
{a}.gather(1,ix.abs()%4) {a}.diagonal() {a}.chunk(2)[0] {a}.unbind()[1] {a}[torch.tensor([1,0])] {a}[:,0,None]
""")
_VIEWS = _split("""\
{a} {a}[:,3:] {a}[...,0] {a}.view(-1)[::2] {a}.select(0,1) {a}.unbind(0)[0] {a}.chunk(2,-1)[1] {a}.t()
{a}.diagonal() {a}.view(-1) {a}.transpose(0,1)[1:] {a}.detach() {a}.reshape(-1)[1:3] {a}.contiguous()[0]
{a}.double() {a}.clone()
""")
_WRITES = _split("""\
{v}.fill_({c}) {v}.zero_() {v}.mul_({c}) {v}.add_({c}) {v}.copy_({v}.clone()*{c}) {v}.clamp_({low},{high})
{v}.exp_() {v}.masked_fill_({v}>{c},{e}) {v}[{v}>{c}]={e} {v}[0]={c} {v}[...,-1]={c} {v}*={c} {v}[:1]+={c}
torch.add({v},{c},out={v}) {v}.index_fill_(0,torch.tensor([1]),{c})
{v}.index_put_((torch.tensor([1]),),torch.tensor({c}).double()) {v}.normal_() {v}.fill_diagonal_({c})
{v}.data.mul_({c}) F.elu_({v},{c}) {v}.scatter_(0,torch.zeros({v}.shape,dtype=torch.long),{c})
""")

FILE = """\
import torch
import torch.nn.functional as F
from torch import nn


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
            *(each for each in (0.0, 1.0, -1.0, 1e-7, (low + high) / 2) if low <= each <= high),
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
        names: dict[str, Any] = {"torch": torch, "F": torch.nn.functional}
        names |= dict(zip(("x", "y", "ix"), (each.clone() for each in self._start), strict=True))
        try:
            with torch.no_grad():
                exec("\n".join(lines), names)
        except (RuntimeError, IndexError, TypeError, ValueError, AttributeError, UserWarning):
            return {}
        return names
