# ruff: noqa: E501
"""Further defects and twins in other styles than those of the published benchmark: inside nested modules, through
helpers, by broadcasting, in loops and losses, with buffers and masks, and as the parts of methods that people write by
hand (contrastive losses, flows, Sinkhorn, survival, mixtures, attention variants).

``# <-`` stands at the line of the defect. Each text defines ``Model`` with ``forward(self, x, t)``, and may define
``loss_fn``.
"""

from __future__ import annotations

from tests.analyze.numeric_defects import Pair

_FC = """\
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 64)
"""


def _forward(body: str) -> str:
    lines = "".join(f"        {line}\n" for line in body.strip().splitlines())
    return f"{_FC}\n    def forward(self, x, t):\n        h = self.fc(x)\n{lines}"


def _pair(name: str, defect: str, twin: str, *rules: str, format: str = "fp32") -> Pair:
    return Pair(name, _forward(defect), _forward(twin), rules, format, whole=True)


_NESTED = """\
class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(64, 10)

    def forward(self, x):
        probabilities = F.softmax(self.proj(x), dim=-1)
        return {result}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(64, 64), nn.GELU(), Head())

    def forward(self, x):
        return self.inner(x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()

    def forward(self, x, t):
        return self.block(x)
"""
_HELPER = """\
def entropy(logits):
    {body}


""" + _forward("return entropy(h).mean()")
_LOSS = (
    _forward("return h")
    + """

def loss_fn(output, batch):
{body}
"""
)
_RMS = """\
class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def _norm(self, x):
        return x * torch.rsqrt({inside}){mark}

    def forward(self, x):
        return self._norm(x.float()).type_as(x) * self.weight


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(64, 64), RMSNorm(64)

    def forward(self, x, t):
        return self.norm(self.fc(x))
"""
_BUFFER = """\
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 64)
        self.register_buffer("deviation", torch.{fill}(64))

    def forward(self, x, t):
        return self.fc(x) / self.deviation{mark}
"""
_EPS_BUFFER = """\
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 64)
        self.register_buffer("eps", torch.tensor({eps}))

    def forward(self, x, t):
        h = torch.relu(self.fc(x))
        return torch.log(h + self.eps){mark}
"""
_WEIGHTNORM = """\
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.v, self.g = nn.Parameter(torch.randn(64, 64)), nn.Parameter(torch.ones(64, 1))

    def forward(self, x, t):
        w = self.g * self.v / {norm}{mark}
        return x @ w.T
"""
_GEM = """\
class GeM(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.ones(1) * 3)

    def forward(self, x):
        return {base}.pow(self.p).mean(-1).pow(1.0 / self.p){mark}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.pool = nn.Linear(64, 64), GeM()

    def forward(self, x, t):
        return self.pool(self.fc(x))
"""

MORE = (
    Pair("log of softmax in a nested head", _NESTED.format(result="torch.log(probabilities)  # <-"),
         _NESTED.format(result="torch.log(probabilities + 1e-6)"), ("G204",), whole=True),
    Pair("entropy by a helper",
         _HELPER.format(body="p = torch.softmax(logits, -1)\n    return -(p * p.log()).sum(-1)  # <-"),
         _HELPER.format(body="q = torch.log_softmax(logits, -1)\n    return -(q.exp() * q).sum(-1)"), ("G204",),
         whole=True),
    Pair("cross entropy by hand in the loss",
         _LOSS.format(body="    p = output.softmax(-1)\n    return -(batch[1] * torch.log(p)).sum(-1).mean()  # <-"),
         _LOSS.format(body="    return -(batch[1] * output.log_softmax(-1)).sum(-1).mean()"), ("G204",), whole=True),
    Pair("RMS norm without eps", _RMS.format(inside="x.pow(2).mean(-1, keepdim=True)", mark="  # <-"),
         _RMS.format(inside="x.pow(2).mean(-1, keepdim=True) + 1e-6", mark=""), ("G206",), whole=True),
    Pair("division by a buffer of zeros", _BUFFER.format(fill="zeros", mark="  # <-"),
         _BUFFER.format(fill="ones", mark=""), ("G205",), whole=True),
    Pair("an eps in a buffer", _EPS_BUFFER.format(eps="1e-10", mark="  # <-"),
         _EPS_BUFFER.format(eps="1e-4", mark=""), ("G204",), "fp16", whole=True),
    Pair("weight norm by hand", _WEIGHTNORM.format(norm="self.v.norm(dim=1, keepdim=True)", mark="  # <-"),
         _WEIGHTNORM.format(norm="(self.v.norm(dim=1, keepdim=True) + 1e-6)", mark=""), ("G205",), whole=True),
    Pair("generalised mean of what is negative", _GEM.format(base="x", mark="  # <-"),
         _GEM.format(base="x.clamp(min=1e-4)", mark=""), ("G206", "G215"), whole=True),
    _pair("pairwise distances by broadcasting",
          "d = ((h[:, None, :] - h[None, :, :]) ** 2).sum(-1)\nreturn d.sqrt()  # <-",
          "d = ((h[:, None, :] - h[None, :, :]) ** 2).sum(-1)\nreturn d.clamp_min(1e-6).sqrt()", "G206"),
    _pair("an exponential in a loop",
          "for _ in range(2):\n    h = torch.exp(h)  # <-\nreturn h",
          "for _ in range(2):\n    h = torch.exp(torch.tanh(h))\nreturn h", "G203"),
    _pair("focal loss", "p = torch.sigmoid(h)\nreturn -((1 - p) ** 2 * torch.log(p)).mean()  # <-",
          "p = torch.sigmoid(h)\nreturn -((1 - p) ** 2 * F.logsigmoid(h)).mean()", "G204"),
    _pair("focal loss with a small gamma",
          "p = torch.sigmoid(h)\nreturn -((1 - p).pow(0.5) * F.logsigmoid(h)).mean()  # <-",
          "p = torch.sigmoid(h)\nreturn -((1 - p + 1e-4).pow(0.5) * F.logsigmoid(h)).mean()", "G206"),
    _pair("Kullback-Leibler by two logarithms",
          "p, q = h.softmax(-1), x.softmax(-1)\nreturn (q * (q.log() - p.log())).sum(-1)  # <-",
          "p, q = h.log_softmax(-1), x.log_softmax(-1)\nreturn F.kl_div(p, q, log_target=True, reduction='none').sum(-1)",
          "G204"),
    _pair("Kullback-Leibler by a ratio",
          "p, q = F.softmax(h, 1), F.softmax(x, 1)\nreturn (q * torch.log(q / p)).sum(-1)  # <-",
          "p, q = F.log_softmax(h, 1), F.log_softmax(x, 1)\nreturn (q.exp() * (q - p)).sum(-1)", "G204", "G205"),
    _pair("Gumbel noise", "u = torch.rand(64, 64, device=h.device)\nreturn (h - torch.log(-torch.log(u))).softmax(-1)  # <-",
          "u = torch.rand(64, 64, device=h.device).clamp(1e-6, 1 - 1e-6)\nreturn (h - torch.log(-torch.log(u))).softmax(-1)",
          "G204"),
    _pair("an affine coupling", "a, b = x.chunk(2, -1)\ns, m = h.chunk(2, -1)\nreturn b * torch.exp(s) + m, s.sum(-1)  # <-",
          "a, b = x.chunk(2, -1)\ns, m = h.chunk(2, -1)\ns = 2 * torch.tanh(s / 2)\nreturn b * torch.exp(s) + m, s.sum(-1)",
          "G203"),
    _pair("a planar flow", "d = 1 + (1 - torch.tanh(h) ** 2) @ x\nreturn torch.log(torch.abs(d))  # <-",
          "d = 1 + (1 - torch.tanh(h) ** 2) @ x\nreturn torch.log(torch.abs(d) + 1e-6)", "G204"),
    _pair("squashed actions", "a = torch.tanh(h)\nreturn torch.log(1 - a.pow(2)).sum(-1)  # <-",
          "return (2 * (0.6931 - h - F.softplus(-2 * h))).sum(-1)", "G204"),
    _pair("squashed actions with eps", "a = torch.tanh(h)\nreturn torch.log(1 - a ** 2).sum(-1)  # <-",
          "a = torch.tanh(h)\nreturn torch.log(1 - a ** 2 + 1e-6).sum(-1)", "G204"),
    _pair("contrastive loss without norms",
          "e = torch.exp(h @ h.T / 0.1)  # <-\nreturn -torch.log(e.diagonal() / e.sum(-1))",
          "z = F.normalize(h, dim=-1)\ne = torch.exp(z @ z.T / 0.1)\nreturn -torch.log(e.diagonal() / e.sum(-1))",
          "G203", "G204"),
    _pair("contrastive loss with norms by hand",
          "z = h / h.norm(dim=1, keepdim=True)  # <-\nreturn torch.logsumexp(z @ z.T / 0.07, -1)",
          "z = h / (h.norm(dim=1, keepdim=True) + 1e-6)\ne = torch.exp(z @ z.T / 0.07)\nreturn torch.log(e.sum(-1))",
          "G205"),
    _pair("cosine similarity by hand", "return (h * x).sum(-1) / (h.norm(dim=-1) * x.norm(dim=-1))  # <-",
          "return (h * x).sum(-1) / (h.norm(dim=-1) * x.norm(dim=-1)).clamp_min(1e-6)", "G205"),
    _pair("the angle between vectors", "return torch.acos(F.cosine_similarity(h, x, dim=-1))  # <-",
          "return torch.acos(F.cosine_similarity(h, x, dim=-1).clamp(-0.999, 0.999))", "G213"),
    _pair("the angle with a clamp at one", "c = F.normalize(h, dim=-1) @ F.normalize(x, dim=-1).T\n"
          "return torch.acos(c.clamp(-1.0, 1.0))  # <-",
          "c = F.normalize(h, dim=-1) @ F.normalize(x, dim=-1).T\nreturn torch.acos(0.99 * c)", "G213"),
    _pair("standardising without eps",
          "m = h.mean(-1, keepdim=True)\nv = (h.float() - m).pow(2).mean(-1, keepdim=True)\nreturn (h - m) / v.sqrt()  # <-",
          "m = h.mean(-1, keepdim=True)\nv = (h.float() - m).pow(2).mean(-1, keepdim=True)\n"
          "return (h - m) / (v + 1e-5).sqrt()", "G205", "G206"),
    _pair("a masked mean", "mask = t > 0.5\nreturn (h * mask).sum(1) / mask.sum(1)  # <-",
          "mask = t > 0.5\nreturn (h * mask).sum(1) / mask.sum(1).clamp(min=1)", "G205"),
    _pair("a masked mean with floats", "mask = (t > 0.5).float()\nreturn (h * mask).sum(1) / mask.sum(1)  # <-",
          "mask = (t > 0.5).float()\nreturn (h * mask).sum(1) / (mask.sum(1) + 1e-6)", "G205"),
    _pair("a survival function", "p = torch.softmax(h, -1)\nreturn torch.log(1 - torch.cumsum(p, -1))  # <-",
          "p = torch.softmax(h, -1)\nreturn torch.log((1 - torch.cumsum(p, -1)).clamp_min(1e-6))", "G204"),
    _pair("transmittance", "alpha = torch.sigmoid(h)\nreturn torch.log(torch.cumprod(1 - alpha, -1))  # <-",
          "return torch.cumsum(F.logsigmoid(-h), -1)", "G204"),
    _pair("a Gaussian likelihood with relu",
          "v = F.relu(h)\nreturn 0.5 * ((t - x) ** 2 / v + torch.log(v)).mean()  # <-",
          "v = F.softplus(h) + 1e-3\nreturn 0.5 * ((t - x) ** 2 / v + torch.log(v)).mean()", "G204", "G205"),
    _pair("a dice loss", "p, y = torch.sigmoid(h), (t > 0.5).float()\n"
          "return 1 - 2 * (p * y).sum(-1) / (p.sum(-1) + y.sum(-1))  # <-",
          "p, y = torch.sigmoid(h), (t > 0.5).float()\nreturn 1 - (2 * (p * y).sum(-1) + 1) / (p.sum(-1) + y.sum(-1) + 1)",
          "G205"),
    _pair("a Poisson rate", "rate = torch.exp(h)  # <-\nreturn (rate - t * h).mean()",
          "rate = torch.exp(h.clamp(max=20))\nreturn (rate - t * h).mean()", "G203"),
    _pair("log odds by hand", "p = torch.sigmoid(h)\nreturn torch.log(p / (1 - p))  # <-",
          "p = torch.sigmoid(h.float()).clamp(1e-6, 1 - 1e-6)\nreturn torch.log(p / (1 - p))", "G204", "G205"),
    _pair("degrees of a graph", "a = (h @ h.T > 0).float()\nd = a.sum(1).pow(-0.5)  # <-\nreturn d[:, None] * a * d @ h",
          "a = (h @ h.T > 0).float()\nd = a.sum(1).clamp(min=1).pow(-0.5)\nreturn d[:, None] * a * d @ h", "G206"),
    _pair("Sinkhorn", "k = torch.exp(-torch.cdist(h.float(), x) / 0.1)\nu = torch.ones(64, device=h.device)\n"
          "for _ in range(3):\n    u = 1.0 / (k @ (1.0 / (k.T @ u)))  # <-\nreturn u",
          "k = torch.exp(-torch.cdist(h.float(), x) / 10)\nu = torch.ones(64, device=h.device)\n"
          "for _ in range(3):\n    u = 1.0 / (k @ (1.0 / (k.T @ u + 1e-4)) + 1e-4)\nreturn u", "G205"),
    _pair("a mixture density", "w = torch.softmax(h, -1)\n"
          "return -torch.log((w * torch.exp(-0.5 * (t - x) ** 2)).sum(-1)).mean()  # <-",
          "w = torch.log_softmax(h, -1)\nreturn -torch.logsumexp(w - 0.5 * (t - x) ** 2, -1).mean()", "G204"),
    _pair("linear attention", "q, k = F.elu(h) + 1, F.elu(x) + 1\nn = q @ k.sum(0, keepdim=True).T\n"
          "return q @ (k.T @ x) / n  # <-",
          "q, k = F.elu(h) + 1, F.elu(x) + 1\nn = q @ k.sum(0, keepdim=True).T\nreturn q @ (k.T @ x) / (n + 1e-4)", "G205"),
    _pair("attention with an exponential by hand",
          "s = torch.einsum('qd,kd->qk', h, x) / 8\nw = s.exp()  # <-\nreturn w / w.sum(-1, keepdim=True) @ x",
          "s = torch.einsum('qd,kd->qk', h, x) / 8\nw = (s - s.detach().max(-1, keepdim=True)[0]).exp()\n"
          "return w / w.sum(-1, keepdim=True) @ x", "G203"),
    _pair("attention by rectified scores",
          "w = F.relu(h @ x.T)\nreturn w / w.sum(-1, keepdim=True) @ x  # <-",
          "w = F.relu(h @ x.T)\nreturn w / w.sum(-1, keepdim=True).clamp(min=1e-4) @ x", "G205"),
    _pair("a mask multiplied into exponentials",
          "m = torch.ones(64, 64, device=h.device).tril()\nw = torch.exp(h @ x.T) * m  # <-\n"
          "return w / w.sum(-1, keepdim=True)",
          "m = torch.ones(64, 64, dtype=torch.bool, device=h.device).tril()\n"
          "return (h @ x.T).masked_fill(~m, float('-inf')).softmax(-1)", "G203"),
    _pair("log1p of a negative sigmoid", "return torch.log1p(-torch.sigmoid(h))  # <-", "return F.logsigmoid(-h)",
          "G204"),
    _pair("log of the normal distribution function",
          "return torch.log(0.5 * (1 + torch.erf(h / 2 ** 0.5)))  # <-",
          "return torch.log(0.5 * (1 + torch.erf(h / 2 ** 0.5)) + 1e-4)", "G204"),
    _pair("a product of probabilities", "return torch.log(torch.sigmoid(h).prod(-1))  # <-",
          "return F.logsigmoid(h).sum(-1)", "G204"),
    _pair("a geometric mean", "return h.abs().prod(-1) ** (1 / 64)  # <-",
          "return (h.abs() + 1e-4).log().mean(-1).exp()", "G206"),
    _pair("the sign by hand", "return h / h.abs()  # <-", "return h / (h.abs() + 1e-4)", "G205"),
    _pair("a guarded logarithm", "r = h.abs()\nreturn torch.where(r > 0, torch.log(r), torch.zeros_like(r))  # <-",
          "r = h.abs()\nreturn torch.log(torch.where(r > 0, r, torch.ones_like(r)))", "G204"),
    _pair("a guarded division", "r = F.relu(h).sum(-1, keepdim=True)\nreturn h / r  # <-",
          "r = F.relu(h).sum(-1, keepdim=True)\nreturn h / r.masked_fill(r == 0, 1.0)", "G205"),
    _pair("shifted by the log of the sum", "return torch.exp(h - h.mean(-1, keepdim=True)).sum(-1).log()  # <-",
          "return torch.exp(h - torch.logsumexp(h, -1, keepdim=True)).sum(-1)", "G203", "G204"),
    _pair("a deviation by two means", "return (h.pow(2).mean(-1) - h.mean(-1).pow(2)).sqrt()  # <-",
          "return ((h - h.mean(-1, keepdim=True)).pow(2).mean(-1) + 1e-5).sqrt()", "G206", "G218"),
    _pair("the leg of a triangle", "a = torch.tanh(h)\nreturn torch.sqrt(1 - a * a)  # <-",
          "a = torch.tanh(h)\nreturn torch.sqrt(1 - a * a + 1e-4)", "G206"),
    _pair("hyperbolic distance",
          "u, v = h.float(), x\nd = (u - v).pow(2).sum(-1)\n"
          "return torch.acosh(1 + 2 * d / ((1 - u.pow(2).sum(-1)) * (1 - v.pow(2).sum(-1))))  # <-",
          "u, v = h.float(), x\nd = (u - v).pow(2).sum(-1)\n"
          "a, b = (1 - u.pow(2).sum(-1)).clamp(min=1e-4), (1 - v.pow(2).sum(-1)).clamp(min=1e-4)\n"
          "return torch.acosh(1 + 1e-5 + 2 * d / (a * b))", "G205", "G213"),
    _pair("a ratio of likelihoods", "return torch.exp(F.log_softmax(h, -1) - F.log_softmax(x, -1))  # <-",
          "return torch.exp((F.log_softmax(h, -1) - F.log_softmax(x, -1)).clamp(-10, 10))", "G203"),
    _pair("softplus of both signs by hand", "return torch.log(torch.exp(h) + torch.exp(-h))  # <-",
          "return h.abs() + torch.log1p(torch.exp(-2 * h.abs()))", "G203", "G204"),
    _pair("softplus, the stable form", "return (1 + h.exp()).log()  # <-",
          "return torch.clamp(h, min=0) + torch.log1p(torch.exp(-torch.abs(h)))", "G203"),
    _pair("tanh by hand", "a, b = torch.exp(h), torch.exp(-h)  # <-\nreturn (a - b) / (a + b)", "return torch.tanh(h)",
          "G203"),
    _pair("swish by hand", "return h / (1 + torch.exp(-h))  # <-", "return h * torch.sigmoid(h)", "G203"),
    _pair("swish by hand with two exponentials", "return h * torch.exp(h) / (1 + torch.exp(h))  # <-",
          "return h * torch.exp(h.clamp(max=80)) / (1 + torch.exp(h.clamp(max=80)))", "G203"),
    _pair("log of a rounded difference", "p = torch.sigmoid(h).clamp(max=0.999)\nreturn torch.log(1 - p)  # <-",
          "p = torch.sigmoid(h).clamp(max=0.99)\nreturn torch.log(1 - p)", "G204", format="bf16"),
    _pair("a squared norm by einsum", "return torch.einsum('bd,bd->b', h, h)  # <-",
          "return torch.linalg.vector_norm(h, dim=-1)", "G214", format="fp16"),
    _pair("a hand-written deviation in fp16",
          "d = h - h.mean(-1, keepdim=True)\nreturn d * torch.rsqrt((d * d).mean(-1, keepdim=True) + 1e-9)  # <-",
          "d = (h - h.mean(-1, keepdim=True)).float()\nreturn d * torch.rsqrt((d * d).mean(-1, keepdim=True) + 1e-9)",
          "G206", "G214", format="fp16"),
    _pair("a mask by where", "m = torch.ones(64, 64, dtype=torch.bool, device=h.device).tril()\n"
          "return torch.where(m, h @ x, torch.tensor(-1e9, device=h.device)).softmax(-1)  # <-",
          "m = torch.ones(64, 64, dtype=torch.bool, device=h.device).tril()\n"
          "return torch.where(m, h @ x, torch.tensor(-1e4, device=h.device)).softmax(-1)", "G201", format="fp16"),
    _pair("a large factor", "return (h * 1e6).tanh()  # <-", "return (h * 100).tanh()", "G201", format="fp16"),
    _pair("a factor that vanishes", "w = torch.sigmoid(h) * 1e-8  # <-\nreturn x / w.sum(-1, keepdim=True)",
          "w = torch.sigmoid(h.float()) * 1e-8\nreturn x / (w.sum(-1, keepdim=True) + 1e-12)", "G202", "G205",
          format="fp16"),
    _pair("an exponential in half by hand", "return torch.exp(h.half())  # <-",
          "return torch.exp(h.float().clamp(max=80))", "G203", format="fp16"),
    _pair("probabilities clamped in half", "p = torch.sigmoid(h).clamp(1e-9, 1)\nreturn -torch.log(p)  # <-",
          "p = torch.sigmoid(h.float()).clamp(1e-9, 1)\nreturn -torch.log(p)", "G204", format="fp16"),
    _pair("an inverse of a small clamp", "return 1 / h.abs().clamp(min=1e-8)  # <-",
          "return 1 / h.abs().clamp(min=1e-4)", "G205", format="fp16"),
)  # fmt: skip
