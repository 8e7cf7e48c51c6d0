"""Topics of short texts by an autoencoder (ProdLDA), with a Laplace approximation of the prior. Careful."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Topics(nn.Module):
    def __init__(self, vocabulary=4000, topics=48, hidden=256, alpha=0.02):
        super().__init__()
        self.encode = nn.Sequential(
            nn.Linear(vocabulary, hidden), nn.Softplus(), nn.Linear(hidden, hidden), nn.Softplus()
        )
        self.mean, self.log_var = nn.Linear(hidden, topics), nn.Linear(hidden, topics)
        self.beta = nn.Linear(topics, vocabulary, bias=False)
        self.norm = nn.BatchNorm1d(vocabulary, affine=False)
        prior = torch.full((topics,), alpha)
        self.register_buffer("prior_mean", torch.log(prior) - torch.log(prior).mean())
        self.register_buffer("prior_var", 1 / prior * (1 - 2 / topics) + 1 / topics**2 * (1 / prior).sum())

    def forward(self, words):
        share = words / words.sum(1, keepdim=True).clamp(min=1)
        h = self.encode(share * 100)
        mean, log_var = self.mean(h).float(), self.log_var(h).float().clamp(-8, 8)
        theta = F.softmax(mean + torch.exp(0.5 * log_var) * torch.randn_like(mean), -1)
        logits = self.norm(self.beta(theta).float())
        return F.log_softmax(logits, -1), mean, log_var

    def divergence(self, mean, log_var):
        ratio = log_var.exp() / self.prior_var
        off = (mean - self.prior_mean).square() / self.prior_var
        return 0.5 * (ratio + off - 1 + self.prior_var.log() - log_var).sum(1)


class WithDivergence(nn.Module):
    def __init__(self):
        super().__init__()
        self.topics = Topics()

    def forward(self, words):
        log_p, mean, log_var = self.topics(words)
        return log_p, self.topics.divergence(mean, log_var)


def make_model():
    return WithDivergence()


def make_batch():
    words = torch.poisson(torch.full((128, 4000), 0.005))
    words[::16] = 0
    return words, words


def loss_fn(output, batch):
    log_p, divergence = output
    return (-(batch[1] * log_p).sum(1) + divergence).mean()
