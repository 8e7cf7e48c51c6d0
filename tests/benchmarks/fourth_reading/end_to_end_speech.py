"""Speech from text with a posterior, a prior and a flow between them (as VITS): its divergence is worked out in FP32.
Careful."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Gated(nn.Module):
    def __init__(self, d, layers=3):
        super().__init__()
        self.inner = nn.ModuleList(nn.Conv1d(d, 2 * d, 5, padding=2) for _ in range(layers))
        self.outer = nn.ModuleList(nn.Conv1d(d, 2 * d, 1) for _ in range(layers))

    def forward(self, x, mask):
        total = torch.zeros_like(x)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            a, b = inner(x).chunk(2, 1)
            rest, skip = outer(torch.tanh(a) * torch.sigmoid(b)).chunk(2, 1)
            x, total = (x + rest) * mask, total + skip
        return total * mask


class Coupling(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.pre, self.net, self.post = nn.Conv1d(d // 2, d, 1), Gated(d), nn.Conv1d(d, d // 2, 1)
        nn.init.zeros_(self.post.weight)
        nn.init.zeros_(self.post.bias)

    def forward(self, z, mask):
        a, b = z.chunk(2, 1)
        return torch.cat([b + self.post(self.net(self.pre(a) * mask, mask)) * mask, a], 1)


class Speech(nn.Module):
    def __init__(self, bins=256, symbols=128, d=64):
        super().__init__()
        self.text = nn.Embedding(symbols, d)
        self.prior = nn.Conv1d(d, 2 * d, 1)
        self.before, self.posterior, self.after = nn.Conv1d(bins, d, 1), Gated(d), nn.Conv1d(d, 2 * d, 1)
        self.flow = nn.ModuleList(Coupling(d) for _ in range(2))
        self.decoder = nn.Sequential(
            nn.Conv1d(d, bins, 7, padding=3), nn.LeakyReLU(0.1), nn.Conv1d(bins, bins, 3, padding=1)
        )

    def forward(self, text, spectrum, mask):
        mean_p, logs_p = self.prior(self.text(text).transpose(1, 2)).chunk(2, 1)
        mean_q, logs_q = self.after(self.posterior(self.before(spectrum) * mask, mask)).chunk(2, 1)
        z = (mean_q + torch.randn_like(mean_q) * torch.exp(logs_q)) * mask
        moved = z
        for layer in self.flow:
            moved = layer(moved, mask)
        return self.decoder(z), moved, mean_p, logs_p, logs_q


def divergence(z, mean, logs_p, logs_q, mask):
    z, mean, logs_p, logs_q = (each.float() for each in (z, mean, logs_p, logs_q))
    kl = logs_p - logs_q - 0.5 + 0.5 * (z - mean).pow(2) * torch.exp(-2 * logs_p)
    return (kl * mask).sum() / mask.sum()


def make_model():
    return Speech()


def make_batch():
    mask = (torch.arange(128) < torch.randint(64, 129, (8, 1))).float().unsqueeze(1)
    return {"text": torch.randint(0, 128, (8, 128)), "spectrum": torch.rand(8, 256, 128) * mask, "mask": mask}


def loss_fn(output, batch):
    made, z, mean, logs_p, logs_q = output
    kl = divergence(z, mean, logs_p, logs_q, batch["mask"])
    return F.l1_loss(made.float() * batch["mask"], batch["spectrum"]) + kl
