# ruff: noqa: E501
"""A fourth group of defects and twins, inside models of many kinds; judged once before anything was changed for it."""

from __future__ import annotations

from tests.analyze.numeric_defects import Pair
from tests.analyze.numeric_defects_more import _pair

_GRAPH_NET = """\
class Layer(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.message, self.update = nn.Linear(2 * size, size), nn.Linear(2 * size, size)

    def forward(self, nodes, source, target):
        sent = F.silu(self.message(torch.cat([nodes[source], nodes[target]], -1)))
        total = torch.zeros_like(nodes, dtype=sent.dtype).index_add(0, target, sent)
        degree = torch.zeros(len(nodes), device=nodes.device).index_add(0, target, torch.ones(len(target), device=nodes.device))
        mean = total / degree{guard}.unsqueeze(-1){mark}
        return nodes + self.update(torch.cat([nodes, mean], -1))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer(64) for _ in range(2))

    def forward(self, x, t):
        source, target = torch.randint(0, 64, (2, 256), device=x.device)
        for layer in self.layers:
            x = layer(x, source, target)
        return x
"""
_CAPSULE = """\
def squash(s):
    n = (s.float() ** 2).sum(-1, keepdim=True)
    return n / (1 + n) * s / torch.sqrt({inner}){mark}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.primary, self.digits = nn.Linear(64, 8 * 16), nn.Parameter(torch.randn(8, 10, 16, 16) * 0.05)

    def forward(self, x, t):
        u = squash(self.primary(x).view(-1, 8, 16))
        votes = torch.einsum("bid,iode->bioe", u, self.digits)
        b = torch.zeros(votes.shape[:3], device=x.device)
        for _ in range(3):
            c = F.softmax(b, 2)
            v = squash((c.unsqueeze(-1) * votes).sum(1))
            b = b + (votes * v.unsqueeze(1)).sum(-1)
        return v.norm(dim=-1)
"""
_SPLINE = """\
class Spline(nn.Module):
    def __init__(self, size):
        super().__init__()
        knots = {knots}
        self.register_buffer("knots", knots)
        self.weight = nn.Parameter(torch.randn(size, len(knots) - 2) * 0.1)

    def forward(self, x):
        x, k = x.unsqueeze(-1), self.knots
        bases = ((x >= k[:-1]) & (x < k[1:])).to(x.dtype)
        left = (x - k[:-2]) / (k[1:-1] - k[:-2]) * bases[..., :-1]{mark}
        right = (k[2:] - x) / (k[2:] - k[1:-1]) * bases[..., 1:]
        return ((left + right) * self.weight).sum(-1)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.mix, self.second = Spline(64), nn.Linear(64, 64), Spline(64)

    def forward(self, x, t):
        return self.second(torch.tanh(self.mix(self.first(x))).float())
"""
_FIELD = """\
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(60, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, x, t):
        points = x.view(64, 64, 1) * torch.linspace(0.1, 1, 3, device=x.device)
        bands = 2.0 ** torch.arange(10, device=x.device)
        angles = (points.unsqueeze(-1) * bands).flatten(2)
        raw = self.net(torch.cat([angles.sin(), angles.cos()], -1)).float()
        alpha = 1 - torch.exp(-F.relu(raw[..., 3]) * 0.02)
        light = torch.cumprod(1 - alpha + 1e-7, -1)
        weights = alpha * light
        depth = (weights * torch.linspace(0, 1, 64, device=x.device)).sum(-1) / {total}{mark}
        return (weights.unsqueeze(-1) * torch.sigmoid(raw[..., :3])).sum(1), depth
"""
_FLOW = """\
class Coupling(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(size // 2, 64), nn.Tanh(), nn.Linear(64, size))

    def forward(self, z):
        a, b = z.chunk(2, -1)
        scale, shift = self.net(a).chunk(2, -1)
        gate = {gate}
        return torch.cat([b * gate + shift, a], -1), {log}{mark}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList(Coupling(64) for _ in range(4))

    def forward(self, x, t):
        total = torch.zeros(len(x), device=x.device)
        for step in self.steps:
            x, change = step(x)
            total = total + change.sum(-1)
        return -(total - 0.5 * (x.float() ** 2).sum(-1)).mean()
"""
_SCAN = """\
class Mixer(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.inner, self.decay, self.out = nn.Linear(size, 2 * size), nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, u):
        value, gate = self.inner(u).chunk(2, -1)
        rate = {rate}
        state = torch.cumsum(rate.float(), 1)
        return self.out(F.silu(gate) * torch.exp(state){mark} * value)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixer = Mixer(64)

    def forward(self, x, t):
        return self.mixer(x.view(4, 16, 64))
"""
_POLICY = """\
class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.actor, self.critic = nn.Linear(64, 64), nn.Linear(64, 6), nn.Linear(64, 1)

    def forward(self, x):
        h = torch.tanh(self.body(x))
        return self.actor(h), self.critic(h)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.agent = Agent()

    def forward(self, x, t):
        logits, value = self.agent(x)
        return logits, value


def loss_fn(output, batch):
    logits, value = output
    old, returns = batch[1][:, :6], batch[1][:, 6]
    new = F.log_softmax(logits.float(), -1)
    advantage = returns - value.squeeze(-1).detach().float()
    {normal}
    ratio = {ratio}
    return -(ratio * advantage.unsqueeze(-1)).mean() + (value.squeeze(-1).float() - returns).pow(2).mean()
"""
_QUANTISER = """\
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.codes = nn.Linear(64, 16), nn.Embedding(32, 16)

    def forward(self, x, t):
        z = self.encoder(x).float()
        index = torch.cdist(z, self.codes.weight).argmin(-1)
        used = F.one_hot(index, 32).float().mean(0)
        spread = torch.exp(-(used * torch.log({used})).sum()){mark}
        return z + (self.codes(index) - z).detach(), spread
"""
_GAUSSIAN = """\
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.mean, self.log_var = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x, t):
        h = F.gelu(self.trunk(x))
        return self.mean(h), self.log_var(h)


def loss_fn(output, batch):
    mean, log_var = output
    {clamp}
    return 0.5 * ((batch[1] - mean) ** 2 / torch.exp(log_var) + log_var).mean(){mark}
"""
_NORMS = """\
class Block(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.norm, self.up, self.down = {norm}, nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x)))){mark}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*(Block(64) for _ in range(3)))

    def forward(self, x, t):
        return self.blocks(x)
"""

UNSEEN = (
    Pair("the mean of a node's messages", _GRAPH_NET.format(guard="", mark="  # <-"), _GRAPH_NET.format(guard=".clamp(min=1)", mark=""), ("G205",), whole=True),
    Pair("squashed capsules", _CAPSULE.format(inner="n", mark="  # <-"), _CAPSULE.format(inner="n + 1e-6", mark=""), ("G206", "G205"), whole=True),
    Pair("splines on repeated knots", _SPLINE.format(knots="torch.cat([torch.zeros(2), torch.linspace(0, 1, 8), torch.ones(2)])", mark="  # <-"),
         _SPLINE.format(knots="torch.linspace(-1.5, 1.5, 12)", mark=""), ("G205",), whole=True),
    Pair("expected depth of a ray", _FIELD.format(total="weights.sum(-1)", mark="  # <-"), _FIELD.format(total="weights.sum(-1).clamp(min=1e-3)", mark=""), ("G205",), whole=True),
    Pair("a coupling layer with a sigmoid gate", _FLOW.format(gate="torch.sigmoid(scale)", log="torch.log(gate)", mark="  # <-"),
         _FLOW.format(gate="torch.sigmoid(scale)", log="F.logsigmoid(scale)", mark=""), ("G204",), whole=True),
    Pair("a scan with growing states", _SCAN.format(rate="self.decay(u)", mark="  # <-").replace("  # <- * value)", " * value)  # <-"),
         _SCAN.format(rate="-F.softplus(self.decay(u))", mark=""), ("G203",), whole=True),
    Pair("a ratio of policies", _POLICY.format(normal="", ratio="torch.exp(new - torch.log(old))  # <-"),
         _POLICY.format(normal="", ratio="torch.exp((new - torch.log(old + 1e-3)).clamp(-5, 5))"), ("G203", "G204"), whole=True),
    Pair("advantages by their deviation", _POLICY.format(normal="advantage = (advantage - advantage.mean()) / advantage.std()  # <-", ratio="new"),
         _POLICY.format(normal="advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-4)", ratio="new"), ("G205",), whole=True),
    Pair("perplexity of a codebook", _QUANTISER.format(used="used", mark="  # <-"), _QUANTISER.format(used="used + 1e-7", mark=""), ("G204",), whole=True),
    Pair("a Gaussian likelihood with a log variance", _GAUSSIAN.format(clamp="", mark="  # <-"), _GAUSSIAN.format(clamp="log_var = log_var.clamp(-8, 8)", mark=""),
         ("G203", "G205"), whole=True),
    Pair("a layer norm without eps", _NORMS.format(norm="nn.LayerNorm(size, eps=0.0)", mark="  # <-"), _NORMS.format(norm="nn.LayerNorm(size)", mark=""),
         ("G205", "G206"), whole=True),
    _pair("log of a cosine", "return torch.log(F.cosine_similarity(h, x, dim=-1))  # <-", "return torch.log((1.001 + F.cosine_similarity(h, x, dim=-1)) / 2 + 1e-3)", "G204"),
    _pair("the angle of a quaternion", "q = F.normalize(h.view(-1, 4), dim=-1)\nreturn 2 * torch.acos(q[:, 0])  # <-",
          "q = F.normalize(h.view(-1, 4), dim=-1)\nreturn 2 * torch.acos(q[:, 0].clamp(-0.999, 0.999))", "G213"),
    _pair("xlogy of probabilities", "p = torch.softmax(h, -1)\nreturn -torch.xlogy(p, p).sum(-1)  # <-",
          "q = torch.log_softmax(h, -1)\nreturn -(q.exp() * q).sum(-1)", "G204"),
    _pair("a beta likelihood", "z = torch.sigmoid(h)\nreturn 2.5 * torch.log(z) + 1.5 * torch.log(1 - z)  # <-", "return 2.5 * F.logsigmoid(h) + 1.5 * F.logsigmoid(-h)", "G204"),
    _pair("normal noise from uniform noise", "u, v = torch.rand_like(x), torch.rand_like(x)\nn = torch.sqrt(-2 * torch.log(u)) * torch.cos(6.2832 * v)  # <-\nreturn h + n",
          "u, v = torch.rand_like(x).clamp(1e-3, 0.999), torch.rand_like(x)\nn = torch.sqrt(-2 * torch.log(u)) * torch.cos(6.2832 * v)\nreturn h + n", "G204"),
    _pair("exponential noise", "return h - torch.log(torch.rand_like(x))  # <-", "return h - torch.log(1 - torch.rand_like(x))", "G204"),
    _pair("log of a bounded ramp", "return torch.log(F.relu6(h))  # <-", "return torch.log(F.relu6(h) + 1e-2)", "G204"),
    _pair("log of a hard gate", "return torch.log(F.hardsigmoid(h)).sum(-1)  # <-", "return torch.log(F.hardsigmoid(h).clamp(min=1e-3)).sum(-1)", "G204"),
    _pair("the root of a Gram diagonal", "g = h.float() @ h.float().T\nreturn torch.sqrt(torch.diagonal(g))  # <-", "g = h.float() @ h.float().T\nreturn torch.sqrt(torch.diagonal(g).clamp(min=1e-3))", "G206"),
    _pair("a power of one and a half", "return h ** 1.5  # <-", "return (h.abs() + 1e-3) ** 1.5", "G204", "G206", "G215"),
    _pair("degrees to the power of minus one half", "a = (t > 0.5).float()\nd = a.sum(-1).pow(-0.5)  # <-\nreturn d.unsqueeze(-1) * a * d @ h.float()",
          "a = (t > 0.5).float()\nd = a.sum(-1).clamp(min=1).pow(-0.5)\nreturn d.unsqueeze(-1) * a * d @ h.float()", "G205", "G206", "G215"),
    _pair("softmax over the edges of a node", "i = torch.randint(0, 8, (64,), device=h.device)\ne = torch.exp(h[:, 0].float())  # <-\ns = torch.zeros(8, device=h.device).index_add(0, i, e)\nreturn e / (s[i] + 1e-6)",
          "i = torch.randint(0, 8, (64,), device=h.device)\ng = h[:, 0].float()\nm = torch.full((8,), -1e30, device=h.device).scatter_reduce(0, i, g, 'amax')\ne = torch.exp(g - m[i])\ns = torch.zeros(8, device=h.device).index_add(0, i, e)\nreturn e / (s[i] + 1e-6)", "G203"),
    _pair("scaling to zero and one", "a, b = h.amin(-1, keepdim=True), h.amax(-1, keepdim=True)\nreturn (h - a) / (b - a)  # <-",
          "a, b = h.amin(-1, keepdim=True), h.amax(-1, keepdim=True)\nreturn (h - a) / (b - a + 1e-3)", "G205"),
    _pair("scaling by the largest", "return h / h.abs().amax(-1, keepdim=True)  # <-", "return h / h.abs().amax(-1, keepdim=True).clamp(min=1e-3)", "G205"),
    _pair("a kernel with the wrong sign", "return torch.exp((h.float() - x).pow(2).sum(-1))  # <-", "return torch.exp(-(h.float() - x).pow(2).sum(-1))", "G203"),
    _pair("a digamma of rectified counts", "return torch.digamma(F.relu(h.float()))  # <-", "return torch.digamma(F.relu(h.float()) + 0.5)", "G204", "G213", "G205"),
    _pair("the log of a determinant's product", "s = torch.sigmoid(h.float())\nreturn torch.log(torch.prod(s, -1))  # <-", "return F.logsigmoid(h.float()).sum(-1)", "G204"),
    _pair("a clamp at zero below a root", "return torch.sqrt(h.clamp(min=0))  # <-", "return torch.sqrt(h.clamp(min=1e-3))", "G206"),
    _pair("expm1 of a logit", "return torch.expm1(h)  # <-", "return torch.expm1(h.clamp(max=5))", "G203"),
    _pair("two to the power of a logit", "return torch.pow(2.0, h)  # <-", "return torch.pow(2.0, h.clamp(-10, 10))", "G203", "G215"),
    _pair("exp2 of a logit", "return torch.exp2(h.float())  # <-", "return torch.exp2(h.float().clamp(-10, 10))", "G203"),
    _pair("a hyperbolic sine", "return torch.sinh(h)  # <-", "return torch.asinh(h)", "G203"),
    _pair("a running logsumexp by hand", "return torch.log(torch.cumsum(torch.exp(h.float()), -1))  # <-", "return torch.logcumsumexp(h.float(), -1)", "G203", "G204"),
    _pair("weights by inverse distance", "d = torch.cdist(h, x)\nw = 1 / d  # <-\nreturn w @ x", "d = torch.cdist(h, x)\nw = 1 / (d + 1e-2)\nreturn w @ x", "G205"),
    _pair("a log partition as a mean", "return torch.log(torch.mean(torch.exp(-h.float())))  # <-", "return torch.logsumexp(-h.float().flatten(), 0) - 8.3178", "G203", "G204"),
    _pair("a deviation by elu", "s = F.elu(h) + 1\nreturn ((x - t) / s).pow(2) + torch.log(s)  # <-", "s = F.elu(h) + 1.05\nreturn ((x - t) / s).pow(2) + torch.log(s)", "G204", "G205"),
    _pair("a relative error", "return ((h - t).abs() / t.abs()).mean()  # <-", "return ((h - t).abs() / t.abs().clamp(min=1e-2)).mean()", "G205"),
    _pair("a symmetric relative error", "return ((h - x).abs() / (h.abs() + x.abs())).mean()  # <-", "return ((h - x).abs() / (h.abs() + x.abs() + 1e-2)).mean()", "G205"),
    _pair("a coefficient of determination", "r = (h.float() - t).pow(2).sum()\nreturn r / (t - t.mean()).pow(2).sum()  # <-", "r = (h.float() - t).pow(2).sum()\nreturn r / ((t - t.mean()).pow(2).sum() + 1e-3)", "G205"),
    _pair("a correlation", "a, b = h.float() - h.float().mean(-1, keepdim=True), x - x.mean(-1, keepdim=True)\nreturn (a * b).sum(-1) / torch.sqrt((a * a).sum(-1) * (b * b).sum(-1))  # <-",
          "a, b = h.float() - h.float().mean(-1, keepdim=True), x - x.mean(-1, keepdim=True)\nreturn (a * b).sum(-1) / torch.sqrt((a * a).sum(-1) * (b * b).sum(-1) + 1e-3)", "G205", "G206"),
    _pair("log1p of a negative probability", "return torch.log1p(-torch.softmax(h, -1))  # <-", "return torch.log1p(-torch.softmax(h, -1).clamp(max=0.999))", "G204"),
    _pair("an inverse error function of noise", "return h + torch.erfinv(2 * torch.rand_like(x) - 1)  # <-", "return h + torch.erfinv((2 * torch.rand_like(x) - 1).clamp(-0.999, 0.999))", "G213"),
    _pair("a logit of noise", "return h + torch.logit(torch.rand_like(x))  # <-", "return h + torch.logit(torch.rand_like(x), eps=1e-3)", "G204", "G213"),
    _pair("F.normalize without eps", "return F.normalize(h, dim=-1, eps=0.0)  # <-", "return F.normalize(h, dim=-1)", "G205"),
    _pair("a kernel by its trace", "k = h.float() @ h.float().T\nreturn k / k.trace()  # <-", "k = h.float() @ h.float().T\nreturn k / (k.diagonal().abs().sum() + 1e-3)", "G205"),
    _pair("targets that are one hot, in a divergence", "y = F.one_hot(t[:, 0].long(), 64).float()\nreturn (y * (torch.log(y) - F.log_softmax(h, -1))).sum(-1)  # <-",
          "y = F.one_hot(t[:, 0].long(), 64).float()\nreturn (torch.xlogy(y, y) - y * F.log_softmax(h, -1)).sum(-1)", "G204"),
    _pair("a mask of the smallest FP32", "s = h @ h.T\nreturn s.masked_fill(t > 0.5, torch.finfo(torch.float32).min).softmax(-1)  # <-",
          "s = h @ h.T\nreturn s.masked_fill(t > 0.5, torch.finfo(s.dtype).min).softmax(-1)", "G201", format="fp16"),
    _pair("a penalty cast to half", "m = (1.0 - t.round()) * -1e6\nreturn (h + m.to(h.dtype)).softmax(-1)  # <-", "m = (1.0 - t.round()) * -1e4\nreturn (h + m.to(h.dtype)).softmax(-1)", "G201", format="fp16"),
    _pair("an update by its own variance", "v = (h * h).mean(0)\nreturn h / (v.sqrt() + 1e-10)  # <-", "g = h.float()\nv = (g * g).mean(0)\nreturn g / (v.sqrt() + 1e-10)", "G205", format="fp16"),
    _pair("a mean square in half", "return (h * h).mean(-1)  # <-", "return h.square().mean(-1)", "G214", format="fp16"),
    _pair("a quantile in half", "return h / (torch.quantile(h, 0.9) + 3)  # <-", "return h / (torch.quantile(h.float(), 0.9).abs() + 3)", "G401", format="fp16"),
    _pair("a Cholesky factor in half", "k = h @ h.T + 0.1 * torch.eye(64, device=h.device, dtype=h.dtype)\nreturn torch.linalg.cholesky(k)  # <-",
          "k = h.float().cov() + 0.1 * torch.eye(64, device=h.device)\nwith torch.autocast('cuda', enabled=False):\n    return torch.linalg.cholesky(k)", "G404", "G401", format="fp16"),
    _pair("positions in bf16", "p = torch.arange(1024, device=h.device).to(torch.bfloat16)\nreturn h + torch.sin(p[:64, None] * 0.1) + p.mean()  # <-",
          "p = torch.arange(1024, device=h.device).float()\nreturn h + torch.sin(p[:64, None] * 0.1) + p.mean()", "G211", format="bf16"),
    _pair("rotations as complex numbers", "c = torch.view_as_complex(h.view(64, 32, 2))  # <-\nreturn torch.view_as_real(c * torch.polar(torch.ones_like(t[:, :32]), t[:, :32])).flatten(1)",
          "c = torch.view_as_complex(h.float().view(64, 32, 2))\nreturn torch.view_as_real(c * torch.polar(torch.ones_like(t[:, :32]), t[:, :32])).flatten(1)", "G403", "G401", format="bf16"),
    _pair("a filter in the frequencies of bf16", "f = torch.fft.rfft(h)  # <-\nreturn torch.fft.irfft(f * 0.5)", "f = torch.fft.rfft(h.float())\nreturn torch.fft.irfft(f * 0.5)", "G403", "G401", format="bf16"),
    _pair("timesteps in bf16", "s = torch.randint(0, 1000, (64, 1), device=h.device).to(torch.bfloat16)\nreturn h * torch.cos(s * 0.01)  # <-",
          "s = torch.randint(0, 1000, (64, 1), device=h.device).float()\nreturn h * torch.cos(s * 0.01)", "G211", format="bf16"),
    _pair("binary cross entropy of probabilities", "return F.binary_cross_entropy(torch.sigmoid(h), t)  # <-", "return F.binary_cross_entropy_with_logits(h, t)", "G301", "G401", "G212", "G204", format="fp16"),
    _pair("a free exponent", "return torch.pow(h.abs() + 1e-2, x)  # <-", "return torch.pow(h.abs().clamp(0.1, 10), x.clamp(-3, 3))", "G215", "G203", "G201"),
    _pair("an inverse softplus of a parameter", "w = self.fc.weight\nreturn h @ torch.log(torch.exp(w) - 1)  # <-", "w = self.fc.weight.clamp(0.1, 10)\nreturn h @ torch.log(torch.expm1(w))", "G204", "G203"),
)  # fmt: skip
