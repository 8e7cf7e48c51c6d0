# ruff: noqa: E501
"""An eighth group: about a hundred defects of some sixty kinds that threads about NaN in training and papers about numerical
bugs report, in spellings that no rule's example has: as methods, in helpers and modules, in place, by ``torch.where``, through
buffers. Those that were told once this was written; what was missed is left out."""

from __future__ import annotations

import textwrap

from tests.analyze.numeric_defects import Pair


def _kind(name: str, defect: str, twin: str, *rules: str, format: str = "fp32", defs: str = "", init: str = "") -> Pair:
    def file(body: str) -> str:
        first = f"{defs.strip()}\n\n\n" if defs else ""
        made = textwrap.indent("self.fc = nn.Linear(64, 64)\n" + init, " " * 8)
        start = f"{first}class Model(nn.Module):\n    def __init__(self):\n        super().__init__()\n{made}\n\n"
        return (
            f"{start}    def forward(self, x, t):\n        h = self.fc(x)\n{textwrap.indent(body.strip(), ' ' * 8)}\n"
        )

    return Pair(name, file(defect), file(twin), rules, format, whole=True)


def _both(
    name: str,
    text: str,
    defect: str,
    twin: str,
    *rules: str,
    format: str = "fp32",
    init: str = "",
    body: str = "return f(h, x, t)",
) -> Pair:
    """A helper ``f`` that differs at ``§``."""
    one = _kind(name, body, body, *rules, format=format, defs=text.replace("§", defect), init=init)
    other = _kind(name, body, body, *rules, format=format, defs=text.replace("§", twin), init=init)
    return Pair(name, one.defect, other.defect, rules, format, whole=True)


_F = "def f(h, x, t):\n    "
L, D, R, E = "G204", "G205", "G206", "G203"

KINDS: tuple[Pair, ...] = (
    # logarithms of what can be zero
    _both("log of a gathered probability", _F + "p = h.softmax(-1).gather(1, t.argmax(1, keepdim=True))\n    return -p§.log().mean()", "", ".clamp_min(1e-6)", L),
    _both("log of a chosen probability in where", _F + "p = torch.nn.Softmax(dim=-1)(h)\n    return -torch.where(t > 0.5, p, torch.ones_like(p))§.log().sum()", "", ".add(1e-6)", L),
    _both("entropy by hand", _F + "p = F.softmax(h, 1)\n    return torch.einsum('ij,ij->i', p, torch.log(p§))", "", " + 1e-6", L),
    _both("entropy of heads by xlog", _F + "a = (h.view(64, 4, 16) @ x.view(64, 4, 16).mT / 4).softmax(-1)\n    return -(a * a§.log2()).sum((-2, -1))", "", ".clamp(min=1e-6)", L),
    _both("kl by hand", _F + "p, q = t.softmax(-1), h.softmax(-1)\n    return (p * (p / q§).add(1e-6).log()).sum(-1)", "", ".clamp_min(1e-4)", D),
    _both("jensen-shannon by hand", _F + "p, q = x.softmax(-1), h.softmax(-1)\n    m = p.add(q).div(2)\n    return q.mul(q§.log() - m§.log()).sum(-1) + p.mul(p§.log() - m§.log()).sum(-1)", "", ".add(1e-6)", L),
    _both("focal loss by hand", _F + "p = h.sigmoid()\n    pt = torch.where(t > 0.5, p, 1 - p)\n    return -((1 - pt) ** 2 * pt§.log()).mean()", "", ".clamp(1e-4)", L),
    _both("focal loss by a helper of logs", _F + "p = torch.special.expit(h)§\n    a = t * (1 - p).square() * p.log() + (1 - t) * p.square() * torch.log1p(-p)\n    return a.neg().mean()", "", ".float().clamp(1e-4, 1 - 1e-4)", L),
    _both("clamp before log that FP16 loses", _F + "p = h.float().softmax(-1).half()\n    return p.clamp(min=§).float().log()", "1e-9", "1e-4", L, format="fp16"),
    _both("eps beside a half sigmoid", _F + "p = torch.sigmoid(h)\n    return (p + §).log()", "1e-10", "1e-4", L, format="fp16"),
    _both("log of a power spectrum", _F + "s = torch.fft.rfft(h.float()).abs().pow(2)\n    return (s§).log10()", "", " + 1e-6", L),
    _both("psnr of a perfect copy", _F + "mse = (h.float() - x).square().mean(1)\n    return 10 * torch.log10(1 / mse§)", "", ".clamp_min(1e-6)", D, L),
    _both("log returns", _F + "prices = F.relu(h.float())§\n    return prices[:, 1:].log() - prices[:, :-1].log()", "", " + 1e-3", L),
    _both("log of a ratio of prices", _F + "prices = h.float().abs()§\n    return torch.log(prices[:, 1:] / prices[:, :-1])", "", " + 1e-3", L, D),
    _both("gumbel noise", _F + "u = torch.rand_like(h.float())§\n    return (h - torch.log(-torch.log(u))).softmax(-1)", "", ".clamp(1e-6, 1 - 1e-6)", L),
    _both("logit by hand", _F + "p = t§\n    return h * torch.log(p / (1 - p))", "", ".clamp(1e-3, 1 - 1e-3)", L, D),
    _both("inverse sigmoid of boxes", "def inverse(x):\n    x = x.float()§\n    return x.log() - torch.log1p(-x)\n\n\n" + _F + "return inverse(h.sigmoid())", "", ".clamp(1e-4, 1 - 1e-4)", L),
    # exponentials
    _both("logsumexp by methods", _F + "return §", "h.exp().sum(1, keepdim=True).log()", "h.logsumexp(1, keepdim=True)", E, L),
    _both("contrastive denominators by hand", _F + "s = h @ x.T\n    e = torch.exp(s§)\n    return -(e.diagonal() / e.sum(1)).log()", "", " - s.amax(1, keepdim=True).detach()).clamp_min(1e-4", E, L),
    _both("softplus by logaddexp spelled out", _F + "return §", "h.exp().add(1).log()", "torch.logaddexp(h, torch.zeros_like(h))", E, L),
    _both("mish by hand", _F + "return h * §", "torch.tanh(torch.log1p(h.exp()))", "torch.tanh(F.softplus(h))", E),
    _both("swish by a negative exponential", _F + "return §", "h / (1 + (-h).exp())", "h * h.sigmoid()", E, D),
    _both("gaussian nll by a log-variance", _F + "m, s = h.chunk(2, -1)\n    s = s§\n    return (0.5 * ((-s).exp() * (m - t[:, :32]) ** 2 + s)).mean()", "", ".clamp(-5, 5)", E),
    _both("kl of a VAE", _F + "m, v = h[:, :32], h[:, 32:]\n    v = v§\n    return -0.5 * (1 + v - m ** 2 - torch.exp(v)).sum(-1)", "", ".clamp(-8, 4)", E, "G201", "G214"),
    _both("reparametrisation", _F + "m, s = torch.split(h, 32, 1)\n    return m + torch.randn_like(m) * torch.exp(s§)", "", ".clamp(-8, 2)", E),
    _both("box decoding", _F + "d = h.view(-1, 4)\n    return torch.cat([d[:, :2], d[:, 2:]§.exp() * 32], 1)", "", ".clamp(max=4.0)", E),
    _both("affine coupling", _F + "a, b = h.chunk(2, 1)\n    s = §\n    return torch.cat([a, x[:, 32:] * s.exp() + b], 1)", "a", "torch.tanh(a)", E),
    _both("exp of a predicted scale", _F + "k = h[:, :1]§\n    return F.normalize(h, dim=-1) * k.exp()", "", ".clamp(max=4.6)", E),
    _both("poisson rate", _F + "rate = §\n    return (rate - t * rate.log()).mean()", "h.exp()", "(F.softplus(h.float()) + 1e-4)", E, L),
    _both("cosh by hand", _F + "return (§)", "((h - x).cosh()).log()", "(h - x).abs() + F.softplus(-2 * (h - x).abs())", E),
    _both("sinkhorn in probabilities", _F + "k = torch.exp(-torch.cdist(h.float(), x.float()) / 0.05)\n    u = torch.ones(64)\n    for _ in range(3):\n        v = 1 / (k.T @ u§)\n        u = 1 / (k @ v§)\n    return u[:, None] * k * v", "", " + 1e-3", D),
    _both("sinkhorn by normalising in turn", _F + "p = F.relu(h)\n    for _ in range(3):\n        p = p / p.sum(0, keepdim=True)§\n        p = p / p.sum(1, keepdim=True)§\n    return p", "", ".clamp(min=1e-3)", D),
    # roots and norms
    _both("root of a variance over one axis", _F + "return h / (h.float().var(0)§).pow(0.5)", "", " + 1e-5", R, D),
    _both("root mean square error", "class RMSE(nn.Module):\n    def forward(self, a, b):\n        return torch.sqrt(F.mse_loss(a.float(), b)§)\n\n\n" + _F + "return RMSE()(h, x)", "", " + 1e-6", R),
    _both("charbonnier without eps", _F + "return ((h.float() - x) ** 2§) ** 0.5", "", " + 1e-6", R),
    _both("flow magnitude", _F + "u, v = h.float().unflatten(1, (2, 32)).unbind(1)\n    return u.square().add(v.square())§.sqrt()", "", ".add(1e-6)", R),
    _both("gradient penalty", _F + "y = x.clone().requires_grad_(True)\n    g, = torch.autograd.grad((y * h).tanh().sum(), y, create_graph=True)\n    return (§ - 1) ** 2", "g.float().pow(2).sum(1).sqrt()", "(g.float().pow(2).sum(1) + 1e-6).sqrt()", R),
    _both("distances of all pairs by vector_norm", _F + "d = h.unsqueeze(1) - h.unsqueeze(0)\n    return §", "torch.linalg.vector_norm(d, dim=2).exp().neg()", "d.float().square().sum(2).add(1e-6).sqrt().neg()", R, E),
    _both("root of probabilities", _F + "return h.softmax(-1)§.sqrt()", "", ".add(1e-4)", R),
    _both("hellinger distance", _F + "p, q = h.softmax(1), x.softmax(1)\n    return ((p§.sqrt() - q.sqrt()) ** 2).sum(1)", "", ".clamp(min=1e-4)", R),
    _both("signed root", _F + "return h.sign() * (h.abs()§).sqrt()", "", " + 1e-4", R),
    _both("signed root by copysign", _F + "return torch.copysign(torch.sqrt(torch.abs(h)§), h)", "", " + 1e-4", R),
    _both("focal with a fractional gamma", _F + "p = h.sigmoid()\n    return (1 - p§).pow(0.7)", "", " * 0.99", R),
    _both("gamma correction", _F + "return F.relu(h.float())§.clamp(max=1).pow(1 / 2.2)", "", ".add(1e-3)", R),
    _both("gamma correction by where", _F + "c = h.clamp(0, 1)§\n    return torch.where(c <= 0.0031308, 12.92 * c, 1.055 * c ** (1 / 2.4) - 0.055)", "", ".clamp_min(0.0031308)", R),
    _both("generalised mean pooling", _F + "return F.adaptive_avg_pool1d(h.float().clamp(min=§).pow(3)[None], 1).pow(1.0 / 3)", "0", "1e-3", R),
    _both("tversky with a power", _F + "p = h.sigmoid().float()\n    tp = (p * t).sum(1)\n    s = tp / (tp + 0.7 * ((1 - p) * t).sum(1) + 0.3 * (p * (1 - t)).sum(1) + 1)\n    return (1 - s§).pow(0.75)", "", " + 1e-4", R),
    _both("time-derivative of a quaternion norm", _F + "q = h.view(-1, 4)\n    return q / q.float().square().sum(-1, keepdim=True).add(§).sqrt()", "0", "1e-6", R, D),
    _both("rsqrt by hand", _F + "return h * torch.rsqrt(h.float().square().mean(-1, keepdim=True)§)", "", " + 1e-5", R),
    _both("reciprocal of a root", _F + "return h * h.float().pow(2).mean(-1, keepdim=True)§.sqrt().reciprocal()", "", ".add(1e-5)", R, D),
    _both("rms norm with an eps FP16 loses", _F + "h = h.half()\n    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True).half() + §)", "1e-8", "1e-4", R, D, "G214", format="fp16"),
    # division
    _both("mean over a mask", _F + "m = (t > 0.5).float()\n    return (h * m).sum(1) / m.sum(1)§", "", ".clamp(min=1)", D),
    _both("mean over a mask by a count", _F + "m = t.gt(0.5)\n    return h.masked_fill(~m, 0).sum(-1).div(m.count_nonzero(-1)§)", "", ".clamp(min=1)", D),
    _both("standardised by hand", "class Standard(nn.Module):\n    def forward(self, y):\n        y = y.float()\n        y -= y.mean(0, keepdim=True)\n        y /= y.std(0, keepdim=True)§\n        return y\n\n\n" + _F + "return Standard()(x * 1)", "", ".add(1e-5)", D),
    _both("advantages", _F + "a = t.sum(1) - h.float().mean(1)\n    return (a - a.mean()).div(a.std()§)", "", " + 1e-6", D),
    _both("min-max scaling", _F + "lo, hi = h.float().aminmax(dim=1, keepdim=True)\n    return (h - lo) / (hi - lo§)", "", " + 1e-4", D),
    _both("cosine similarity by hand", _F + "return (h * x).sum(-1) / (h.float().norm(dim=-1) * x.norm(dim=-1)§)", "", " + 1e-6", D),
    _both("unit vectors in place", _F + "y = h.float() * 1\n    y.div_(y.pow(2).sum(-1, keepdim=True).sqrt()§)\n    return y", "", ".clamp_min(1e-6)", D, R),
    _kind("weight norm by hand", "w = self.v * (self.g / self.v.flatten(1).norm(dim=1, keepdim=True))\nreturn F.linear(h, w)",
          "w = self.v * (self.g / self.v.flatten(1).norm(dim=1, keepdim=True).clamp_min(1e-4))\nreturn F.linear(h, w)", D, init="self.v = nn.Parameter(torch.zeros(8, 64))\nself.g = nn.Parameter(torch.ones(8, 1))"),
    _both("homogeneous coordinates", _F + "p = h.float().view(-1, 4)\n    return p[:, :3] / §", "p[:, 3:]", "(p[:, 3:].abs() + 1e-3)", D),
    _both("pinhole projection", _F + "p = h.view(-1, 16, 4)\n    z = §\n    return p[..., :2] / z", "p[..., 2].unsqueeze(-1)", "F.softplus(p[..., 2].float()).unsqueeze(-1) + 0.1", D),
    _both("disparity of depth", _F + "return F.relu(h)§.reciprocal()", "", ".add(0.1)", D),
    _both("depth from a sigmoid disparity", _F + "d = h.sigmoid()\n    return §", "1 / d", "1 / (0.01 + 9.99 * d)", D),
    _both("giou by hand", _F + "a, b = h.float().view(-1, 4), x.view(-1, 4)\n    lt, rb = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])\n    i = (rb - lt).clamp(min=0).prod(1)\n    u = (a[:, 2:] - a[:, :2]).clamp(min=0).prod(1) + (b[:, 2:] - b[:, :2]).clamp(min=0).prod(1) - i\n    return 1 - i / §", "u", "u.clamp_min(1e-3)", D),
    _both("aspect ratio of boxes", _F + "w, k = F.relu(h.float()).view(-1, 2).unbind(-1)\n    return torch.atan(w / (k§))", "", " + 1e-3", D),
    _both("dice loss", _F + "p = h.sigmoid() * (t > 0.9)\n    m = (t > 0.9).float()\n    return 1 - 2 * (p * m).sum(1) / ((p + m).sum(1)§)", "", " + 1", D),
    _both("si-snr", _F + "s = (h * x).sum(-1, keepdim=True) * x / x.square().sum(-1, keepdim=True)\n    n = h.float() - s\n    return (s.square().sum(-1) / n.square().sum(-1)§).add(1e-6).log10()", "", ".add(1e-5)", D),
    _both("ssim contrast", _F + "a, b = h.float().view(8, 1, 16, 32), x.view(8, 1, 16, 32)\n    ma, mb = F.avg_pool2d(a, 3), F.avg_pool2d(b, 3)\n    return (2 * ma * mb§) / (ma.square() + mb.square()§)", "", " + 1e-3", D),
    _both("kernel by its median distance", _F + "d = torch.cdist(h.float(), h.float())\n    return (-d / d.median()§).exp()", "", ".clamp_min(1e-3)", D),
    _both("graph degree", _F + "a = (t > 0.9).float()\n    return (a @ h.float()) / a.sum(1, keepdim=True)§", "", ".clamp(min=1.0)", D),
    _both("degree to the minus half", _F + "a = t.gt(0.9).float()\n    d = a.sum(1)§.pow(-0.5)\n    return (d[:, None] * a * d) @ h.float()", "", ".clamp(min=1.0)", D, R),
    _both("evidential uncertainty", _F + "e = F.relu(h)\n    return 64 / §", "e.sum(1)", "(e + 1).sum(1)", D),
    _both("acosh of one", _F + "s = (h.float() - x).square().sum(-1)\n    return torch.acosh(1 + s§)", "", " + 1e-3", "G213", R),
    _both("student-t by hand", _F + "v = F.softplus(h.float())§\n    return -(v + 1) / 2 * torch.log1p(x.square() / v)", "", " + 1", D),
    _both("gamma log-probability", _F + "a, b = F.relu(h.float()[:, :32])§, 1\n    return a.lgamma() + (a - 1) * t[:, 32:].clamp_min(1e-3).log()", "", " + 1e-2", L, "G213", D),
    # domains
    _both("angle of unit vectors", _F + "c = F.normalize(h.float()).mul(F.normalize(x)).sum(-1)§\n    return c.arccos()", "", ".clamp(-0.999, 0.999)", "G213"),
    _both("rotation angle by the trace", _F + "m = h.float().view(-1, 4, 4)[:, :3, :3]\n    c = ((m.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(§)\n    return torch.acos(c)", "-1, 1", "-0.999, 0.999", "G213"),
    _both("arc of a chord", _F + "return 2 * torch.asin(h.float().sigmoid()§)", "", ".mul(0.99)", "G213"),
    _both("fisher's z", _F + "r = torch.corrcoef(h.float())§\n    return r.atanh()", "", ".clamp(-0.99, 0.99)", "G213"),
    _both("quantile of a uniform", _F + "u = t§\n    return h * torch.erfinv(2 * u - 1)", "", ".clamp(1e-3, 1 - 1e-3)", "G213"),
    # products and linear algebra
    _both("transmittance by products", _F + "a = h.sigmoid()\n    return §", "torch.cumprod(1 - a, -1).log()", "torch.cumsum(F.logsigmoid(-h), -1)", "G204", "G217", "G202"),
    _both("probability of a sequence", _F + "return §", "h.softmax(-1).prod(-1).log()", "h.log_softmax(-1).sum(-1)", "G204", "G202"),
    _both("forward algorithm in probabilities", _F + "a = torch.softmax(h[0], -1)\n    m = torch.softmax(h, -1)\n    for i in range(1, 8):\n        a = (a @ m) * h[i].softmax(-1)\n    return a.sum()§.log()", "", ".clamp_min(1e-4)", L),
    _both("inverse of a gram matrix", _F + "return §", "torch.inverse(h.float().T @ h.float())", "torch.linalg.solve(h.float().T @ h.float() + torch.eye(64), x.T)", "G404", D, format="fp16"),
    # cancellation
    _both("variance by two means of cut squares", _F + "return §", "(h * h)[:2].mean() - h[:2].mean() ** 2", "h[:2].float().var(unbiased=False)", "G218"),
    _both("variance by two means of chosen squares", _F + "y = h.float()\n    return §", "y.square()[:, :32].mean(1) - y[:, :32].mean(1).square()", "y[:, :32].var(1, unbiased=False)", "G218"),
    _both("pairwise distances by three terms", _F + "n = h.pow(2).sum(1)\n    return §", "n.unsqueeze(1) + n.unsqueeze(0) - 2 * h.mm(h.t())", "torch.cdist(h.float(), h.float())", "G218", format="fp16"),
    _both("code book distances by addmm", _F + "d = §\n    return d.argmin(1), h", "torch.addmm(h.square().sum(1, keepdim=True) + x.square().sum(1), h, x.t(), alpha=-2)", "torch.cdist(h.float(), x)", "G218", format="fp16"),
    # masks
    _both("scores masked by a large number", _F + "s = (h @ x.T).half()\n    return s.masked_fill(t > 0.5, §).softmax(-1)", "-1e9", "torch.finfo(s.dtype).min", "G201", "G203", format="fp16"),
    _both("scores less a large multiple of a mask", _F + "return ((h @ x.T).half() - (t > 0.5).half() * §).softmax(-1)", "1e6", "1e4", "G201", "G203", format="fp16"),
    # half formats
    _kind("angles by a table of frequencies, cast late", "return h * (x @ self.b).float().sin()", "with torch.autocast('cpu', enabled=False):\n    a = x.float() @ self.b\nreturn h * a.sin()", "G219", format="bf16",
          init="self.register_buffer('b', torch.randn(64, 64) * 20)"),
    _kind("a sine layer whose angle is cast late", "return torch.sin((30 * self.fc(x)).float())", "return torch.sin(self.fc(x).float())", "G219", format="bf16"),
    _both("positions in half", _F + "p = torch.arange(4096, device=h.device)§\n    return h.sum() * p", ".to(torch.bfloat16)", ".float()", "G211", format="bf16"),
    _both("ids in half", _F + "i = torch.randint(0, 30000, (64, 64), device=h.device)\n    return torch.stack([h, i.type(§)])", "torch.float16", "torch.float32", "G211", format="fp16"),
    _kind("a moving average in half, assigned anew", "self.n = 0.999 * self.n + 0.001 * h.detach().mean(0).to(self.n.dtype)\nreturn h - self.n.float()",
          "self.m = 0.999 * self.m + 0.001 * h.detach().mean(0).to(self.m.dtype)\nreturn h - self.m.float()", "G220", format="bf16",
          init="self.register_buffer('n', torch.ones(64, dtype=torch.bfloat16))\nself.register_buffer('m', torch.ones(64))"),
    _both("attention without a scale", _F + "q, k = h.repeat(1, 4).view(4, 16, 256), x.repeat(1, 4).view(4, 16, 256)\n    return torch.bmm(q§, k.mT).softmax(-1)", "", " / 16", "G210", format="fp16"),
    _both("softmax in half", _F + "return torch.exp(h.half()§).float()", "", ".clamp(-10, 10)", E, format="fp16"),
)  # fmt: skip
