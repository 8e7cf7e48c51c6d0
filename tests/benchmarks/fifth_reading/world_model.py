"""DreamerV3-like world model, returns folded back by symexp. Planted: exp of an unbounded prediction."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def symexp(x):
    return torch.sign(x) * (torch.exp(torch.abs(x)) - 1)  # planted: G203


class RSSM(nn.Module):
    def __init__(self, obs=64, act=8, deter=128, stoch=32):
        super().__init__()
        self.cell = nn.GRUCell(stoch + act, deter)
        self.prior, self.post = nn.Linear(deter, 2 * stoch), nn.Linear(deter + obs, 2 * stoch)
        self.reward = nn.Sequential(nn.Linear(deter + stoch, 128), nn.SiLU(), nn.Linear(128, 1))
        self.decode = nn.Linear(deter + stoch, obs)
        self.deter, self.stoch = deter, stoch

    def forward(self, obs, act, noise):
        h = obs.new_zeros(obs.shape[0], self.deter)
        z = obs.new_zeros(obs.shape[0], self.stoch)
        kl, recs, rews = 0.0, [], []
        for t in range(obs.shape[1]):
            h = self.cell(torch.cat([z, act[:, t]], -1), h)
            pm, ps = self.prior(h).chunk(2, -1)
            qm, qs = self.post(torch.cat([h, obs[:, t]], -1)).chunk(2, -1)
            ps, qs = 2 * torch.sigmoid(ps / 2) + 0.1, 2 * torch.sigmoid(qs / 2) + 0.1
            z = qm + qs * noise[:, t]
            kl = kl + (torch.log(ps / qs) + (qs**2 + (qm - pm) ** 2) / (2 * ps**2) - 0.5).sum(-1).mean()
            feat = torch.cat([h, z], -1)
            recs.append(self.decode(feat))
            rews.append(symexp(self.reward(feat)).squeeze(-1))
        return torch.stack(recs, 1), torch.stack(rews, 1), kl


def make_model():
    return RSSM()


def make_batch():
    b, t = 16, 8
    return (torch.randn(b, t, 64), torch.randn(b, t, 8), torch.randn(b, t, 32)), (
        torch.randn(b, t, 64),
        torch.randn(b, t),
    )


def loss_fn(output, batch):
    rec, rew, kl = output
    return F.mse_loss(rec, batch[1][0]) + F.smooth_l1_loss(rew, batch[1][1]) + 0.1 * kl
