# ruff: noqa: E501
"""A fifth group, of numerical defects and of formats and dimensions; judged once, after the fourth group was right."""

from __future__ import annotations

from tests.analyze.numeric_defects import Pair
from tests.analyze.numeric_defects_more import _pair

_GAN = """\
class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.Tanh())

    def forward(self, z):
        return self.net(z)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))

    def forward(self, x):
        return {critic}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator, self.critic = Generator(), Critic()

    def forward(self, x, t):
        fake = self.generator(x)
        return self.critic(t), self.critic(fake)


def loss_fn(output, batch):
    real, fake = output
    return {loss}
"""
_HYPER = """\
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.hyper, self.base = nn.Linear(64, 2 * 64), nn.Linear(64, 64)

    def forward(self, x, t):
        scale, shift = self.hyper(x).chunk(2, dim=-1)
        y = self.base(t)
        return (y - shift) / {scale}{mark}
"""
_LSTM = """\
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.score, self.head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 1), nn.Linear(32, 4)

    def forward(self, x, t):
        states, _ = self.rnn(x.view(64, 8, 8))
        score = self.score(states).squeeze(-1).float()
        {weights}
        return self.head((weights.unsqueeze(-1) * states).sum(1))
"""
_UNET = """\
class Block(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.conv, self.shift = nn.Conv2d(size, size, 3, padding=1), nn.Linear(32, size)

    def forward(self, x, emb):
        return x + F.silu(self.conv(x) + self.shift(emb)[:, :, None, None])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.block, self.outer = nn.Conv2d(1, 16, 3, padding=1), Block(16), nn.Conv2d(16, 1, 3, padding=1)
        self.register_buffer("betas", torch.linspace(1e-4, 0.02, 1000))

    def forward(self, x, t):
        step = torch.randint(0, 1000, (64,), device=x.device)
        kept = torch.cumprod(1 - self.betas, 0)[step].view(-1, 1, 1, 1)
        image = x.view(64, 1, 8, 8)
        noisy = kept.sqrt() * image + (1 - kept).sqrt() * torch.randn_like(image)
        angle = step.float()[:, None] * torch.exp(-torch.arange(16, device=x.device) * 0.5)
        emb = torch.cat([angle.sin(), angle.cos()], -1)
        guess = self.outer(self.block(self.inner(noisy), emb)).float()
        snr = kept / (1 - kept)
        return ((guess - noisy) ** 2 * {weight}).mean(){mark}
"""
_ATTENTION = """\
class Attention(nn.Module):
    def __init__(self, size, heads):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, x):
        b, n, size = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, size // self.heads).permute(2, 0, 3, 1, 4)
        scores = {scores}
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, size))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention(64, 1)

    def forward(self, x, t):
        return self.attention(x.view(4, 16, 64))
"""
_HALF = """\
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.head = nn.Linear(64, 64), {norm}, {head}

    def forward(self, x, t):
        h = self.norm(self.fc(x))
        h = {middle}
        return self.head(h)
"""
_ISLAND = """\
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.big, self.out = nn.Linear(64, {width}), nn.Linear({width}, {width}), nn.Linear({width}, 64)

    def forward(self, x, t):
        h = F.gelu(self.embed(x.repeat(32, 1)))
        {middle}
        return self.out(h)
"""


def _half(name: str, rule: str, defect: tuple[str, str, str], twin: tuple[str, str, str], *more: str) -> Pair:
    bad, good = (_HALF.format(norm=each[0], middle=each[1], head=each[2]) for each in (defect, twin))
    return Pair(name, bad, good, (rule, *more), "fp16", whole=True)


SECOND = (
    Pair("a saturating generator loss", _GAN.format(critic="torch.sigmoid(self.net(x))", loss="-(torch.log(real) + torch.log(1 - fake)).mean()  # <-"),
         _GAN.format(critic="self.net(x)", loss="-(F.logsigmoid(real.float()) + F.logsigmoid(-fake.float())).mean()"), ("G204",), whole=True),
    Pair("an exponential GAN", _GAN.format(critic="self.net(x)", loss="(torch.exp(fake.float()) - real).mean()  # <-"),
         _GAN.format(critic="self.net(x)", loss="(F.softplus(fake) + F.softplus(-real)).mean()"), ("G203",), whole=True),
    Pair("a scale from a hypernetwork", _HYPER.format(scale="scale", mark="  # <-"), _HYPER.format(scale="(F.softplus(scale) + 0.1)", mark=""), ("G205",), whole=True),
    Pair("a scale from a hypernetwork, rectified", _HYPER.format(scale="torch.relu(scale)", mark="  # <-"), _HYPER.format(scale="(torch.relu(scale) + 1)", mark=""), ("G205",), whole=True),
    Pair("pooling over states by hand", _LSTM.format(weights="e = torch.exp(score)  # <-\n        weights = e / e.sum(1, keepdim=True)"),
         _LSTM.format(weights="weights = torch.softmax(score, 1)"), ("G203",), whole=True),
    Pair("pooling over states by hand, shifted", _LSTM.format(weights="e = score.exp()  # <-\n        weights = e / e.sum(1, keepdim=True)"),
         _LSTM.format(weights="top, _ = score.max(1, keepdim=True)\n        e = (score - top).exp()\n        weights = e / e.sum(1, keepdim=True)"), ("G203",), whole=True),
    Pair("a loss weighted by the logarithm of noise", _UNET.format(weight="torch.log(snr - 1)", mark="  # <-"), _UNET.format(weight="snr.clamp(max=5)", mark=""), ("G204",), whole=True),
    Pair("scores without their scale", _ATTENTION.format(scores="q @ k.transpose(-2, -1)  # <-"),
         _ATTENTION.format(scores="q @ k.transpose(-2, -1) * (size // self.heads) ** -0.5"),
         ("G210",), whole=True, format="fp16"),
    _pair("a mean over what a mask keeps", "m = (t > 0.9).float()\nreturn (h.float() * m).sum(-1) / m.sum(-1)  # <-", "m = (t > 0.9).float()\nreturn (h.float() * m).sum(-1) / m.sum(-1).clamp_min(1)", "G205"),
    _pair("a loss over counted tokens", "y = torch.where(t > 0.5, (t * 64).long(), -100)\nn = (y != -100).sum()\nreturn F.cross_entropy(h.float(), y[:, 0], reduction='sum') / n  # <-",
          "y = torch.where(t > 0.5, (t * 64).long(), -100)\nn = (y != -100).sum()\nreturn F.cross_entropy(h.float(), y[:, 0], reduction='sum') / n.clamp(min=1)", "G205"),
    _pair("an information ratio", "r = h.float().mean(0) / h.float().std(0)  # <-\nreturn -r.mean()", "r = h.float().mean(0) / (h.float().std(0) + 1e-3)\nreturn -r.mean()", "G205"),
    _pair("the volume of an ellipsoid", "return torch.log(h.float().abs()).sum(-1)  # <-", "return torch.log(h.float().abs() + 1e-3).sum(-1)", "G204"),
    _pair("log10 of a power spectrum", "p = torch.fft.rfft(h.float()).abs() ** 2\nreturn 10 * torch.log10(p)  # <-", "p = torch.fft.rfft(h.float()).abs() ** 2\nreturn 10 * torch.log10(p.clamp(min=1e-5))", "G204"),
    _pair("a root of an exponential average", "v = 0.9 * F.relu(h) + 0.1 * F.relu(x)\nreturn v.sqrt()  # <-", "v = 0.9 * F.relu(h) + 0.1 * F.relu(x)\nreturn (v + 1e-3).sqrt()", "G206"),
    _pair("the geometric mean of two", "return torch.sqrt(torch.sigmoid(h) * torch.sigmoid(x))  # <-", "return torch.exp(0.5 * (F.logsigmoid(h) + F.logsigmoid(x)))", "G206"),
    _pair("a cube root", "return h.abs() ** (1 / 3)  # <-", "return (h.abs() + 1e-2) ** (1 / 3)", "G206", "G215"),
    _pair("an arcsine of a tanh", "return torch.asin(torch.tanh(h))  # <-", "return torch.asin(torch.tanh(h) * 0.99)", "G213"),
    _pair("an inverse hyperbolic cosine", "return torch.acosh(1 + F.relu(h))  # <-", "return torch.acosh(1.01 + F.relu(h))", "G213"),
    _pair("a distance in the Lorentz model", "i = (h.float() * x).sum(-1)\nreturn torch.acosh(-i)  # <-", "i = (h.float() * x).sum(-1)\nreturn torch.acosh((-i).clamp(min=1.01))", "G213"),
    _pair("hazards from a survival function", "s = torch.exp(-torch.cumsum(F.softplus(h.float()), -1))\nreturn -torch.log(s[:, 1:] / s[:, :-1])  # <-",
          "s = -torch.cumsum(F.softplus(h.float()), -1)\nreturn s[:, :-1] - s[:, 1:]", "G205", "G204"),
    _pair("a mixture of logistic bins", "a, b = torch.sigmoid(h + 0.1), torch.sigmoid(h - 0.1)\nreturn torch.log(a - b)  # <-", "a, b = torch.sigmoid(h + 0.1), torch.sigmoid(h - 0.1)\nreturn torch.log((a - b).clamp(min=1e-3))", "G204"),
    _pair("label smoothing by hand", "p = F.softmax(h, -1)\nreturn -(0.9 * torch.log(p[:, 0]) + 0.1 * torch.log(p).mean(-1))  # <-", "q = F.log_softmax(h, -1)\nreturn -(0.9 * q[:, 0] + 0.1 * q.mean(-1))", "G204"),
    _pair("a Boltzmann policy with a learned temperature", "b = self.fc.bias[:1]\nreturn torch.softmax(h / b, -1)  # <-", "b = F.softplus(self.fc.bias[:1]) + 0.1\nreturn torch.softmax(h / b, -1)", "G205"),
    _pair("a discount that is learned", "g = torch.sigmoid(h[:, :1])\nreturn x / (1 - g)  # <-", "g = torch.sigmoid(h[:, :1])\nreturn x / (1.05 - g)", "G205"),
    _pair("Student's likelihood", "n = F.relu(h)\nreturn 0.5 * (n + 1) * torch.log(1 + x ** 2 / n)  # <-", "n = F.softplus(h) + 2\nreturn 0.5 * (n + 1) * torch.log(1 + x ** 2 / n)", "G205"),
    _pair("a spectral normaliser", "w = self.fc.weight\nu = F.normalize(x.mean(0), dim=0)\ns = (u @ w).norm()\nreturn x @ (w / s)  # <-", "w = self.fc.weight\nu = F.normalize(x.mean(0), dim=0)\ns = (u @ w).norm()\nreturn x @ (w / (s + 1e-3))", "G205"),
    _pair("soft counts that overflow", "return torch.logsumexp(torch.exp(h.float()), -1)  # <-", "return torch.logsumexp(h.float(), -1)", "G203"),
    _pair("a variance and a mean in half", "return torch.var_mean(h, -1)[0]  # <-", "return h.std(-1)", "G208", "G206", format="fp16"),
    _pair("a root mean square in half", "return h * ((h * h).mean(-1, keepdim=True) + 1e-3) ** -0.5  # <-", "g = h.float()\nreturn g * ((g * g).mean(-1, keepdim=True) + 1e-3) ** -0.5", "G214", format="fp16"),
    _pair("an eigenvalue in half", "return torch.linalg.eigvalsh(h @ h.T)  # <-", "with torch.autocast('cuda', enabled=False):\n    g = h.float()\n    return torch.linalg.eigvalsh(g @ g.T)", "G404", "G401", format="fp16"),
    _pair("an eps of a denominator in bf16's half brother", "return x / (h.abs() + 1e-8)  # <-", "return x / (h.float().abs() + 1e-3)", "G205", format="fp16"),
    _half("a half norm", "G304", ("nn.BatchNorm1d(64).half()", "h", "nn.Linear(64, 8)"), ("nn.BatchNorm1d(64)", "h", "nn.Linear(64, 8)"), "G301"),
    Pair("a large product outside autocast", _ISLAND.format(width=512, middle="with torch.autocast('cuda', enabled=False):\n            h = self.big(h.float())  # <-"),
         _ISLAND.format(width=512, middle="h = self.big(h)"), ("G303",), "fp16", whole=True),
    Pair("an odd width", _ISLAND.format(width=1001, middle="h = self.big(h)  # <-"), _ISLAND.format(width=1008, middle="h = self.big(h)"), ("G101", "G102"), "fp16", whole=True),
    _pair("odd heads", "q = h.view(64, 1, 2, 32)[..., :28].transpose(1, 2)[..., :27]\nreturn F.scaled_dot_product_attention(q, q, q)  # <-", "q = h.view(64, 1, 2, 32).transpose(1, 2)\nreturn F.scaled_dot_product_attention(q, q, q)", "G105", "G408", format="fp16"),
    _pair("a sum of ones in bf16", "o = torch.ones(4096, device=h.device, dtype=torch.bfloat16)\nwith torch.autocast('cuda', enabled=False):\n    return h.float() / o.cumsum(0)[-1]  # <-", "o = torch.ones(4096, device=h.device)\nwith torch.autocast('cuda', enabled=False):\n    return h.float() / o.cumsum(0)[-1]", "G217", "G207", "G211", format="bf16"),
    _pair("softmax in half where autocast is off", "with torch.autocast('cuda', enabled=False):\n    return torch.softmax(h * 3, -1)  # <-", "with torch.autocast('cuda', enabled=False):\n    return torch.softmax(h.float() * 3, -1)", "G209", format="fp16"),
)  # fmt: skip
