"""Topics of news: Weibull variables, which can be reparametrised, stand for the shares of topics in a text. The model
is in BF16."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Topics(nn.Module):
    def __init__(self, words=2000, hidden=256, topics=64):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(words, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.shape, self.scale = nn.Linear(hidden, topics), nn.Linear(hidden, topics)
        self.words = nn.Linear(topics, words, bias=False)

    def forward(self, counts):
        h = self.body(torch.log1p(counts).to(self.words.weight.dtype))
        k = F.softplus(self.shape(h)) + 0.2
        scale = F.softplus(self.scale(h)) + 0.01
        u = torch.rand_like(scale)
        amount = scale * (-torch.log(u)).pow(1.0 / k)  # planted: G204
        share = amount / amount.sum(-1, keepdim=True)
        return self.words(share), k, scale


def make_model():
    return Topics().bfloat16()


def make_batch():
    return torch.poisson(torch.full((64, 2000), 0.1)), None


def loss_fn(output, batch):
    logits, k, scale = (each.float() for each in output)
    fit = -(batch[0] * F.log_softmax(logits, -1)).sum(-1)
    keep = (k - 1.0).square().sum(-1) + (scale - 1.0).square().sum(-1)
    return (fit + 0.1 * keep).mean() / 200.0
