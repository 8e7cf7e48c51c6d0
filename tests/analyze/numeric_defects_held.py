# ruff: noqa: E501
"""A third group of defects and twins, written after the rules were and judged once before anything was changed for it."""

from __future__ import annotations

from tests.analyze.numeric_defects import Pair
from tests.analyze.numeric_defects_more import _pair

_SCALE = """\
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.scale = nn.Linear(64, 64), nn.Parameter(torch.ones(64))

    def forward(self, x, t):
        h = self.fc(x)
        return {result}
"""
_DIFFUSION = """\
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 64)
        self.register_buffer("kept", torch.cumprod(1 - torch.linspace({first}, 0.02, 100), 0))

    def forward(self, x, t):
        step = torch.randint(0, 100, (64, 1), device=x.device)
        kept = self.kept[step]
        return (x - kept.sqrt() * self.fc(x)) / (1 - kept).sqrt(){mark}
"""
_SMALL_LOSS = """\
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.mean, self.spread = nn.Linear(64, 64), nn.Linear(64, 16), nn.Linear(64, 16)

    def forward(self, x):
        h = torch.relu(self.trunk(x))
        return self.mean(h), self.spread(h)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder()

    def forward(self, x, t):
        mean, spread = self.encoder(x)
        return mean, spread


def loss_fn(output, batch):
    mean, spread = output
    {line}
    return kl.sum(-1).mean()
"""

HELD = (
    Pair("a variational bound", _SMALL_LOSS.format(line="kl = -0.5 * (1 + spread - mean ** 2 - spread.exp())  # <-"),
         _SMALL_LOSS.format(line="kl = -0.5 * (1 + spread - mean ** 2 - spread.clamp(max=20).exp())"), ("G203",), whole=True),
    Pair("a scale that may become zero", _SCALE.format(result="h / F.relu(self.scale)  # <-"),
         _SCALE.format(result="h / (F.softplus(self.scale) + 1e-3)"), ("G205",), whole=True),
    Pair("log of a free parameter", _SCALE.format(result="torch.log(self.scale) + h  # <-"),
         _SCALE.format(result="torch.log(F.softplus(self.scale) + 1e-3) + h"), ("G204",), whole=True),
    Pair("a diffusion schedule from zero", _DIFFUSION.format(first="0.0", mark="  # <-"),
         _DIFFUSION.format(first="1e-3", mark=""), ("G205",), whole=True),
    _pair("hard triplets", "d = h @ h.T\ns = d.diagonal()\nd = F.relu(s[:, None] - 2 * d + s[None, :])\nreturn d.sqrt()  # <-",
          "d = h @ h.T\ns = d.diagonal()\nd = F.relu(s[:, None] - 2 * d + s[None, :])\nz = (d == 0).float()\nreturn (d + z * 1e-4).sqrt() * (1 - z)",
          "G206"),
    _pair("entropy in bits", "p = torch.softmax(h, -1)\nreturn -(p * torch.log2(p)).sum(-1)  # <-",
          "p = torch.softmax(h, -1)\nreturn -(p * torch.log2(p.clamp_min(1e-6))).sum(-1)", "G204"),
    _pair("a Dirichlet normaliser", "a = F.relu(h)\nreturn torch.lgamma(a).sum(-1) - torch.lgamma(a.sum(-1))  # <-",
          "a = F.relu(h) + 1\nreturn torch.lgamma(a).sum(-1) - torch.lgamma(a.sum(-1))", "G204", "G213"),
    _pair("masked attention by hand", "s = h @ x.T\nw = torch.exp(s - s.amax(-1, keepdim=True)) * (t > 0.5)\nreturn w / w.sum(-1, keepdim=True)  # <-",
          "s = h @ x.T\nw = torch.exp(s - s.amax(-1, keepdim=True)) * (t > 0.5)\nreturn w / w.sum(-1, keepdim=True).clamp(min=1e-4)", "G205"),
    _pair("a smooth absolute value", "return torch.sqrt((h - t) ** 2).mean()  # <-", "return torch.sqrt((h - t) ** 2 + 1e-4).mean()", "G206"),
    _pair("structural similarity without constants", "a, b = h.mean(-1), x.mean(-1)\nreturn 2 * a * b / (a ** 2 + b ** 2)  # <-",
          "a, b = h.mean(-1), x.mean(-1)\nreturn (2 * a * b + 1e-3) / (a ** 2 + b ** 2 + 1e-3)", "G205"),
    _pair("a ratio of energies in decibels", "return 10 * torch.log10((x ** 2).sum(-1) / ((x - h) ** 2).sum(-1))  # <-",
          "return 10 * torch.log10(((x ** 2).sum(-1) + 1e-4) / (((x - h) ** 2).sum(-1) + 1e-4))", "G204", "G205"),
    _pair("overlap of boxes", "a, b = F.relu(h).sum(-1), F.relu(x).sum(-1)\ni = torch.minimum(a, b)\nreturn i / (a + b - i)  # <-",
          "a, b = F.relu(h).sum(-1), F.relu(x).sum(-1)\ni = torch.minimum(a, b)\nreturn i / (a + b - i).clamp(min=1e-4)", "G205"),
    _pair("likelihood of a class", "y = t[:, 0].long()\nreturn F.nll_loss(torch.log(F.softmax(h, 1)), y)  # <-",
          "y = t[:, 0].long()\nreturn F.nll_loss(F.log_softmax(h, 1), y)", "G204"),
    _pair("a product of gates in a loop", "a = torch.ones(64, device=h.device)\nfor i in range(4):\n    a = a * torch.sigmoid(h[:, i])\nreturn torch.log(a)  # <-",
          "a = torch.zeros(64, device=h.device)\nfor i in range(4):\n    a = a + F.logsigmoid(h[:, i])\nreturn a", "G204"),
    _pair("distance to the origin of a ball", "return torch.atanh(h.norm(dim=-1))  # <-",
          "return torch.atanh(h.norm(dim=-1).clamp(max=0.99))", "G213"),
    _pair("the length of a vector", "return (h ** 2 + x ** 2) ** 0.5  # <-", "return (h ** 2 + x ** 2 + 1e-6) ** 0.5", "G206"),
    _pair("division by a cumulative product", "return x / torch.cumprod(torch.sigmoid(h), -1)  # <-",
          "return x / (torch.cumprod(torch.sigmoid(h), -1) + 1e-3)", "G205"),
    _pair("the log of a hyperbolic cosine", "return torch.log(torch.cosh(h - t)).mean()  # <-",
          "d = h - t\nreturn (d + F.softplus(-2 * d) - 0.6931).mean()", "G203", "G204"),
    _pair("an exponential unit by hand", "return torch.where(h > 0, h, torch.exp(h) - 1)  # <-",
          "return torch.where(h > 0, h, torch.exp(h.clamp(max=0)) - 1)", "G203"),
    _pair("whitening", "return (h - h.mean(0)) / h.float().var(0).sqrt()  # <-",
          "return (h - h.mean(0)) / (h.float().var(0) + 1e-5).sqrt()", "G205", "G206"),
    _pair("scores of a mixture of experts", "g = F.relu(h)\nw, i = torch.topk(g, 2)\nreturn w / w.sum(-1, keepdim=True)  # <-",
          "g = F.softmax(h, -1)\nw, i = torch.topk(g, 2)\nreturn w / w.sum(-1, keepdim=True)", "G205"),
    _pair("a harmonic mean", "return 2 / (1 / F.relu(h) + 1 / F.relu(x))  # <-",
          "a, b = F.relu(h) + 1e-3, F.relu(x) + 1e-3\nreturn 2 * a * b / (a + b)", "G205"),
    _pair("a logarithmic map", "c = (F.normalize(h, dim=-1) * F.normalize(x, dim=-1)).sum(-1)\nreturn torch.acos(c)  # <-",
          "c = (F.normalize(h, dim=-1) * F.normalize(x, dim=-1)).sum(-1)\nreturn torch.acos(c.clamp(-0.999, 0.999))", "G213"),
    _pair("a sum of logarithms of gates", "return torch.stack([torch.log(g) for g in torch.sigmoid(h).unbind(1)], 1)  # <-",
          "return torch.stack([F.logsigmoid(g) for g in h.unbind(1)], 1)", "G204"),
    _pair("a guarded denominator in fp16", "return x / torch.where(h == 0, 1e-10, h)  # <-",
          "return x / torch.where(h.abs() < 1e-3, 1e-3, h)", "G205", format="fp16"),
    _pair("a weighted binary cross entropy", "p = torch.sigmoid(h)\nreturn -(t * torch.log(p + 1e-12)).mean()  # <-",
          "p = torch.sigmoid(h.float())\nreturn -(t * torch.log(p + 1e-12)).mean()", "G204", format="fp16"),
    _pair("an inverse deviation in fp16", "return h * torch.rsqrt(h.var(-1, keepdim=True) + 1e-12)  # <-",
          "v = h.float().var(-1, keepdim=True)\nreturn h * torch.rsqrt(v + 1e-12)", "G206", format="fp16"),
    _pair("a penalty of a million", "return h - 1e6 * (t > 0.5).to(torch.float16)  # <-",
          "return h.masked_fill(t > 0.5, float('-inf'))", "G201", format="fp16"),
)  # fmt: skip
