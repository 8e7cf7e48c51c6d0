"""Small models of many kinds, each with the input that it takes and the frontends that can see it."""

from __future__ import annotations

import dataclasses

ALL = ("export", "record-fake", "record-real")
RECORDED = ("record-fake", "record-real")
REAL = ("record-real",)


@dataclasses.dataclass(frozen=True)
class Example:
    """Source of a class ``Net``, its inputs, the frontends that agree on it, and some of its sites."""

    source: str
    inputs: tuple[str, ...]
    frontends: tuple[str, ...] = ALL
    sites: tuple[str, ...] = ()


ZOO: dict[str, Example] = {
    "attention by hand": Example(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

            def forward(self, x):
                q, k, v = self.qkv(x).chunk(3, -1)
                scores = q @ k.transpose(-1, -2) / math.sqrt(16)
                mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
                weights = torch.softmax(scores.masked_fill(~mask, float("-inf")), dim=-1)
                return x + self.out(F.dropout(weights, 0.1) @ v)
        """,
        ("2x8x16",),
        sites=(
            "qkv",
            "#matmul.0",
            "#div.0",
            "#masked_fill.0",
            "#softmax.0",
            "#dropout.0",
            "#matmul.1",
            "out",
            "#add.0",
        ),
    ),
    "convolutions": Example(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.down = nn.Conv2d(3, 16, 3, stride=2)
                self.up = nn.ConvTranspose2d(16, 8, 4, stride=2, groups=2)
                self.norm, self.group, self.drop = nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.Dropout2d(0.1)
                self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Bilinear(8, 8, 4)

            def forward(self, x):
                x = self.group(self.norm(self.up(F.gelu(self.down(x), approximate="tanh"))))
                x = F.interpolate(F.pad(x, (1, 1)), size=(8, 8), mode="bilinear")
                x = self.pool(self.drop(x)).flatten(1)
                return self.head(x, x)
        """,
        ("2x3x32x32",),
        sites=("down", "#gelu.0", "up", "norm", "group", "#pad.0", "#interpolate.0", "drop", "pool", "head"),
    ),
    "recurrent layers": Example(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.out = nn.Embedding(50, 16), nn.Linear(8, 50)
                self.lstm = nn.LSTM(16, 32, 2, batch_first=True, bidirectional=True)
                self.gru, self.cell = nn.GRU(64, 16), nn.LSTMCell(16, 8)

            def forward(self, ids):
                x, _ = self.gru(self.lstm(self.embed(ids))[0])
                hidden = cell = torch.zeros(x.shape[0], 8)
                outputs = []
                for step in range(x.shape[1]):
                    hidden, cell = self.cell(x[:, step], (hidden, cell))
                    outputs.append(hidden)
                return self.out(torch.stack(outputs, 1))
        """,
        ("4x6:int64:50",),
        sites=("embed", "lstm", "gru", "cell", "#stack.0", "out"),
    ),
    "transformer layers of torch": Example(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)
                self.decoder = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True)

            def forward(self, x):
                return self.decoder(x, self.encoder(x))
        """,
        ("2x5x16",),
        sites=("encoder.layers.0.self_attn", "encoder.layers.1#relu.0", "decoder.multihead_attn", "decoder#add.2"),
    ),
    "custom autograd function": Example(
        """
        class Swish(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, weight):
                ctx.save_for_backward(x, weight)
                return x * torch.sigmoid(x) @ weight

            @staticmethod
            def backward(ctx, grad):
                x, weight = ctx.saved_tensors
                return grad @ weight.t(), x.t() @ grad

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight, self.out = nn.Parameter(torch.randn(8, 8)), nn.Linear(8, 8)

            def forward(self, x):
                return self.out(Swish.apply(x, self.weight))
        """,
        ("4x8",),
        sites=("#Swish.0", "out"),
    ),
    "dataclass output": Example(
        """
        @dataclasses.dataclass
        class Output:
            logits: torch.Tensor
            extra: dict

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.out = nn.Linear(8, 8)

            def forward(self, x, scale=2.0):
                y = self.out(x)
                return Output(y * scale, {"mean": y.mean()})
        """,
        ("4x8",),
        sites=("out", "#mul.0", "#mean.0"),
    ),
    "autocast regions": Example(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)

            def forward(self, x):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    y = self.a(x)
                    with torch.autocast("cpu", enabled=False):
                        y = F.softmax(y.float(), -1)
                    y = self.b(y)
                return self.norm(y.float())
        """,
        ("4x8",),
        sites=("a", "#softmax.0", "b", "norm"),
    ),
    "complex numbers": Example(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.filter, self.out = nn.Parameter(torch.randn(8, 5, dtype=torch.cfloat)), nn.Linear(8, 8)

            def forward(self, x):
                spectrum = torch.fft.rfft(x)
                y = torch.einsum("bf,of->bo", spectrum, self.filter.conj())
                return self.out(y.real) + torch.view_as_real(spectrum).sum((-1, -2))[:, None]
        """,
        ("4x8",),
        sites=("#fft.0", "#einsum.0", "out", "#sum.0", "#add.0"),
    ),
    "lazy layers": Example(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.norm, self.out = nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.LazyLinear(10)

            def forward(self, x):
                return self.out(self.norm(self.conv(x)).flatten(1))
        """,
        ("2x3x8x8",),
        sites=("conv", "norm", "out"),
    ),
    "checkpointed blocks": Example(
        """
        from torch.utils.checkpoint import checkpoint

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

            def forward(self, x):
                x = checkpoint(lambda t: self.a(t).relu(), x.requires_grad_(), use_reentrant=True)
                return checkpoint(self.b, x, use_reentrant=False)
        """,
        ("4x8",),
        sites=("a", "#relu.0", "b"),
    ),
    "compiled parts": Example(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

            @torch.compile
            def squash(self, x):
                return torch.tanh(x)

            def forward(self, x):
                return self.b(self.squash(self.a(x)))
        """,
        ("4x8",),
        sites=("a", "#tanh.0", "b"),
    ),
    "tied and shared": Example(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.layer = nn.Embedding(50, 16), nn.Linear(16, 16)
                self.again, self.head = self.layer, nn.Linear(16, 50, bias=False)
                self.head.weight = self.embed.weight

            def forward(self, ids):
                return self.head(self.again(self.layer(self.embed(ids)).relu()))
        """,
        ("4x6:int64:50",),
        sites=("embed", "layer", "#relu.0", "head"),
    ),
    "parametrised layers": Example(
        """
        from torch.nn.utils.parametrizations import spectral_norm, weight_norm

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = weight_norm(nn.Linear(8, 8)), spectral_norm(nn.Conv1d(8, 8, 3, padding=1))

            def forward(self, x):
                return self.b(self.a(x).transpose(1, 2))
        """,
        ("4x6x8",),
        sites=("a", "b"),
    ),
    "subclasses of layers": Example(
        """
        class Scaled(nn.Linear):
            def forward(self, x):
                return F.linear(x, self.weight * 2, self.bias)

        class Renamed(nn.Linear):
            pass

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = Scaled(8, 8), Renamed(8, 8)

            def forward(self, x):
                return self.b(self.a(x))
        """,
        ("4x8",),
        sites=("a#mul.0", "a#linear.0", "b"),
    ),
    "low precision parameters": Example(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.norm, self.b = nn.Linear(8, 8).bfloat16(), nn.LayerNorm(8), nn.Linear(8, 8)

            def forward(self, x):
                return self.b(self.norm(self.a(x.bfloat16()).float()).type_as(x))
        """,
        ("4x8",),
        sites=("a", "norm", "b"),
    ),
    "writes into tensors": Example(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

            def forward(self, x):
                out = torch.zeros(x.shape[0], 2, 8)
                out[:, 0] = self.a(x)
                out[:, 1] += self.b(x)
                out.mul_(2).add_(1)
                return out.sum(1)
        """,
        ("4x8",),
        RECORDED,
        sites=("a", "#copy.0", "b", "#add.0", "#copy.1", "#mul.0", "#add.1", "#sum.0"),
    ),
    "routing by the data": Example(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.gate, self.experts = nn.Linear(8, 4), nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

            def forward(self, x):
                weights, chosen = torch.topk(F.softmax(self.gate(x), -1), 2)
                out = torch.zeros_like(x)
                for number, expert in enumerate(self.experts):
                    token, slot = torch.where(chosen == number)
                    if len(token):
                        out.index_add_(0, token, expert(x[token]) * weights[token, slot, None])
                return out
        """,
        ("16x8",),
        REAL,
        sites=("gate", "#softmax.0", "#topk.0", "#index.0", "#index.1", "#mul.0", "#index_add.0"),
    ),
    "branch on a mean": Example(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

            def forward(self, x):
                y = self.a(x)
                return self.b(y) if y.mean() > 1000 else y.relu_()
        """,
        ("4x8",),
        REAL,
        sites=("a", "#mean.0", "#gt.0", "#relu.0"),
    ),
    "branch on an integer input": Example(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.a, self.b = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 8)

            def forward(self, ids):
                layer = self.a if bool((ids >= 0).all()) else self.b
                return layer(self.embed(ids))
        """,
        ("4x6:int64:9",),
        RECORDED,
        sites=("embed", "a"),
    ),
}
