"""Models as people write them, numerically sound: no numerical rule may warn about them."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(784, 256), nn.ReLU())
        self.mu, self.lv = nn.Linear(256, 32), nn.Linear(256, 32)
        self.dec = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 784))

    def forward(self, x):
        h = self.enc(x)
        mu, lv = self.mu(h), self.lv(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * lv)
        recon = self.dec(z)
        kl = -0.5 * torch.mean(1 + lv - mu.pow(2) - lv.exp())
        return F.binary_cross_entropy_with_logits(recon, x) + kl


class SimCLR(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 64),
        )

    def forward(self, x):
        z = F.normalize(self.f(x), dim=1)
        sim = z @ z.t() / 0.5
        mask = torch.eye(z.shape[0], dtype=torch.bool, device=z.device)
        sim = sim.masked_fill(mask, float("-inf"))
        target = torch.arange(z.shape[0], device=z.device) ^ 1
        return F.cross_entropy(sim, target)


class SupCon(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(64, 32)

    def forward(self, x, y):
        z = F.normalize(self.f(x), dim=1)
        logits = z @ z.T / 0.07
        logits = logits - logits.max(dim=1, keepdim=True).values.detach()
        self_mask = 1 - torch.eye(len(z), device=z.device)
        mask = (y[:, None] == y[None]).float() * self_mask
        exp = torch.exp(logits) * self_mask
        log_prob = logits - torch.log(exp.sum(1, keepdim=True) + 1e-12)
        return -((mask * log_prob).sum(1) / mask.sum(1).clamp(min=1)).mean()


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList(nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 16)) for _ in range(4))

    def forward(self, x):
        logdet = 0
        for net in self.nets:
            a, b = x.chunk(2, 1)
            s, t = net(a).chunk(2, 1)
            s = torch.tanh(s)
            b = b * torch.exp(s) + t
            logdet = logdet + s.sum(1)
            x = torch.cat([b, a], 1)
        return (0.5 * (x**2).sum(1) + 0.5 * x.shape[1] * math.log(2 * math.pi) - logdet).mean()


class GCN(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 7)

    def forward(self, x, adj):
        adj = adj + torch.eye(adj.shape[0], device=adj.device)
        d = adj.sum(1).clamp(min=1).rsqrt()
        norm = d[:, None] * adj * d[None]
        return F.log_softmax(norm @ self.b(F.relu(norm @ self.a(x))), 1).mean()


class GAT(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Linear(16, 32, bias=False)
        self.a1, self.a2 = nn.Linear(32, 1), nn.Linear(32, 1)

    def forward(self, x, adj):
        h = self.w(x)
        e = F.leaky_relu(self.a1(h) + self.a2(h).T, 0.2)
        e = e.masked_fill(adj < 0.5, torch.finfo(e.dtype).min)
        return F.elu(torch.softmax(e, 1) @ h).mean()


class SAC(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.mu, self.ls = nn.Linear(17, 256), nn.Linear(256, 6), nn.Linear(256, 6)

    def forward(self, s):
        h = F.relu(self.body(s))
        mu, ls = self.mu(h), self.ls(h).clamp(-20, 2)
        std = ls.exp()
        u = mu + std * torch.randn_like(mu)
        logp = -0.5 * ((u - mu) / (std + 1e-6)) ** 2 - ls - 0.5 * math.log(2 * math.pi)
        logp = logp.sum(-1) - (2 * (math.log(2) - u - F.softplus(-2 * u))).sum(-1)
        return logp.mean() + torch.tanh(u).mean()


class DiffusionUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("abar", torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0))
        self.inc, self.down, self.mid = (
            nn.Conv2d(3, 32, 3, padding=1),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.Conv2d(64, 64, 3, padding=1),
        )
        self.up, self.out, self.temb = (
            nn.ConvTranspose2d(64, 32, 2, 2),
            nn.Conv2d(64, 3, 3, padding=1),
            nn.Linear(64, 64),
        )
        self.n1, self.n2 = nn.GroupNorm(8, 64), nn.GroupNorm(8, 32)

    def forward(self, x, t):
        freqs = torch.exp(-math.log(10000) * torch.arange(32, device=x.device) / 32)
        emb = t[:, None].float() * freqs[None]
        emb = self.temb(torch.cat([emb.sin(), emb.cos()], 1))
        noise = torch.randn_like(x)
        a = self.abar[t][:, None, None, None]
        xt = a.sqrt() * x + (1 - a).sqrt() * noise
        h0 = F.silu(self.n2(self.inc(xt)))
        h = F.silu(self.n1(self.down(h0))) + emb[:, :, None, None]
        h = self.up(self.mid(h))
        return F.mse_loss(self.out(torch.cat([h, h0], 1)), noise)


class Llama(nn.Module):
    def __init__(self, d=64, n=2):
        super().__init__()
        self.emb = nn.Embedding(256, d)
        self.blocks = nn.ModuleList(Block(d) for _ in range(n))
        self.norm, self.head = RMS(d), nn.Linear(d, 256, bias=False)

    def forward(self, ids):
        x = self.emb(ids)
        for b in self.blocks:
            x = b(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits[:, :-1].reshape(-1, 256).float(), ids[:, 1:].reshape(-1))


class RMS(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.w = nn.Parameter(torch.ones(d))

    def forward(self, x):
        y = x.float()
        return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).type_as(x) * self.w


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.n1, self.n2, self.qkv, self.o = RMS(d), RMS(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.w1, self.w2, self.w3 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d), nn.Linear(d, 4 * d)

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = self.qkv(self.n1(x)).view(B, T, 3, 4, D // 4).permute(2, 0, 3, 1, 4).unbind(0)
        pos = torch.arange(T, device=x.device).float()
        freq = 1.0 / (10000 ** (torch.arange(0, D // 4, 2, device=x.device).float() / (D // 4)))
        ang = torch.outer(pos, freq)
        cos, sin = ang.cos(), ang.sin()
        q, k = self.rot(q, cos, sin), self.rot(k, cos, sin)
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, D))
        h = self.n2(x)
        return x + self.w2(F.silu(self.w1(h)) * self.w3(h))

    def rot(self, x, cos, sin):
        a, b = x.float().chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).type_as(x)


class MoE(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(64, 8)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)) for _ in range(8))

    def forward(self, x):
        p = F.softmax(self.gate(x).float(), -1)
        w, idx = p.topk(2, -1)
        w = w / w.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for i, e in enumerate(self.experts):
            m = (idx == i).float() * w
            out = out + m.sum(-1, keepdim=True) * e(x)
        aux = 8 * (p.mean(0) * (idx == 0).float().mean()).sum()
        return out.pow(2).mean() + 0.01 * aux


class Seq2Seq(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.enc, self.dec = nn.Embedding(100, 32), nn.GRU(32, 64, batch_first=True), nn.GRUCell(96, 64)
        self.att, self.out = nn.Linear(64, 64), nn.Linear(64, 100)

    def forward(self, src, tgt):
        mem, h = self.enc(self.emb(src))
        h = h[0]
        loss = 0
        for t in range(tgt.shape[1] - 1):
            score = torch.bmm(mem, self.att(h).unsqueeze(2)).squeeze(2) / 8
            score = score.masked_fill(src == 0, -1e4)
            ctx = torch.bmm(score.softmax(1).unsqueeze(1), mem).squeeze(1)
            h = self.dec(torch.cat([self.emb(tgt[:, t]), ctx], 1), h)
            loss = loss + F.cross_entropy(self.out(h), tgt[:, t + 1], ignore_index=0)
        return loss / (tgt.shape[1] - 1)


class NeRF(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(63, 128), nn.ReLU(), nn.Linear(128, 4))

    def forward(self, pts, gt):
        enc = torch.cat([pts] + [f(2.0**i * math.pi * pts) for i in range(10) for f in (torch.sin, torch.cos)], -1)
        raw = self.net(enc)
        rgb, sigma = torch.sigmoid(raw[..., :3]), F.relu(raw[..., 3])
        alpha = 1 - torch.exp(-sigma * 0.05)
        trans = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha + 1e-10], 1), 1)[:, :-1]
        w = alpha * trans
        return F.mse_loss((w[..., None] * rgb).sum(1), gt)


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.b = nn.Conv2d(3, 16, 3, 2, 1)
        self.cls, self.box = nn.Conv2d(16, 5, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x, y):
        f = F.relu(self.b(x))
        p = torch.sigmoid(self.cls(f)).float()
        ce = F.binary_cross_entropy_with_logits(self.cls(f), y, reduction="none")
        pt = p * y + (1 - p) * (1 - y)
        focal = ((1 - pt) ** 2 * ce).mean()
        d = F.softplus(self.box(f))
        left, t, right, b = d.unbind(1)
        area = (left + right) * (t + b)
        inter = (torch.minimum(left, right) * 2) * (torch.minimum(t, b) * 2)
        iou = inter / (area + 1e-6)
        return focal + (1 - iou).mean()


class Dice(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x, y):
        p = self.c(x).softmax(1).float()
        num = 2 * (p * y).sum((2, 3)) + 1
        return (1 - num / (p.sum((2, 3)) + y.sum((2, 3)) + 1)).mean()


class Performer(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        q, k, v = F.relu(self.q(x)) + 1e-3, F.relu(self.k(x)) + 1e-3, self.v(x)
        kv = torch.einsum("bnd,bne->bde", k, v)
        z = 1 / (torch.einsum("bnd,bd->bn", q, k.sum(1)) + 1e-4)
        return torch.einsum("bnd,bde,bn->bne", q, kv, z).mean()


class Distill(nn.Module):
    def __init__(self):
        super().__init__()
        self.s, self.t = nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, x):
        with torch.no_grad():
            t = F.softmax(self.t(x) / 4, -1)
        return F.kl_div(F.log_softmax(self.s(x) / 4, -1), t, reduction="batchmean") * 16


class Perceiver(nn.Module):
    def __init__(self):
        super().__init__()
        self.lat = nn.Parameter(torch.randn(16, 64))
        self.att = nn.MultiheadAttention(64, 4, batch_first=True)
        self.ln, self.ff = nn.LayerNorm(64), nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))

    def forward(self, x):
        z = self.lat.expand(x.shape[0], -1, -1)
        for _ in range(3):
            z = z + self.att(z, x, x, need_weights=False)[0]
            z = z + self.ff(self.ln(z))
        return z.mean()


class TripletNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(64, 32)

    def forward(self, a, p, n):
        a, p, n = (F.normalize(self.f(v), dim=-1) for v in (a, p, n))
        return F.relu((a - p).pow(2).sum(-1) - (a - n).pow(2).sum(-1) + 0.2).mean()


class GumbelVQ(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.code = nn.Linear(64, 32), nn.Parameter(torch.randn(128, 32))

    def forward(self, x):
        z = self.e(x)
        d = z.pow(2).sum(1, keepdim=True) - 2 * z @ self.code.T + self.code.pow(2).sum(1)
        q = self.code[d.argmin(1)]
        st = z + (q - z).detach()
        soft = F.gumbel_softmax(-d, tau=1.0, dim=-1)
        avg = soft.mean(0)
        perplexity = torch.exp(-torch.sum(avg * torch.log(avg + 1e-10)))
        return st.pow(2).mean() + F.mse_loss(q, z.detach()) + 0 * perplexity


class MDN(nn.Module):
    def __init__(self):
        super().__init__()
        self.h, self.pi, self.mu, self.ls = nn.Linear(1, 32), nn.Linear(32, 5), nn.Linear(32, 5), nn.Linear(32, 5)

    def forward(self, x, y):
        h = torch.tanh(self.h(x))
        ls = self.ls(h).clamp(-5, 5)
        lp = F.log_softmax(self.pi(h), -1) - 0.5 * ((y - self.mu(h)) * torch.exp(-ls)) ** 2 - ls
        return -torch.logsumexp(lp, -1).mean()


BATCHES = {
    "VAE": lambda: (torch.rand(16, 784),),
    "SimCLR": lambda: (torch.randn(8, 3, 32, 32),),
    "SupCon": lambda: (torch.randn(16, 64), torch.randint(0, 4, (16,))),
    "Flow": lambda: (torch.randn(32, 16),),
    "GCN": lambda: (torch.randn(20, 16), (torch.rand(20, 20) > 0.7).float()),
    "GAT": lambda: (torch.randn(20, 16), torch.rand(20, 20)),
    "SAC": lambda: (torch.randn(32, 17),),
    "DiffusionUNet": lambda: (torch.randn(2, 3, 32, 32), torch.randint(0, 1000, (2,))),
    "Llama": lambda: (torch.randint(0, 256, (2, 32)),),
    "MoE": lambda: (torch.randn(32, 64),),
    "Seq2Seq": lambda: (torch.randint(0, 100, (4, 9)), torch.randint(0, 100, (4, 7))),
    "NeRF": lambda: (torch.rand(8, 32, 3), torch.rand(8, 3)),
    "Detector": lambda: (torch.randn(2, 3, 32, 32), torch.rand(2, 5, 16, 16)),
    "Dice": lambda: (torch.randn(2, 3, 16, 16), torch.rand(2, 2, 16, 16)),
    "Performer": lambda: (torch.randn(2, 16, 64),),
    "Distill": lambda: (torch.randn(8, 64),),
    "Perceiver": lambda: (torch.randn(2, 20, 64),),
    "TripletNet": lambda: (torch.randn(8, 64), torch.randn(8, 64), torch.randn(8, 64)),
    "GumbelVQ": lambda: (torch.randn(16, 64),),
    "MDN": lambda: (torch.randn(16, 1), torch.randn(16, 1)),
}
"""Inputs of each model, by its name."""
