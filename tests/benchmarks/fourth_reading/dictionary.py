"""A sparse dictionary of the activations of a language model: the largest 32 of 4096 codes, and what they leave
unexplained. Careful."""

import torch
from torch import nn


class Dictionary(nn.Module):
    def __init__(self, d=512, codes=4096, kept=32):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(d, codes), nn.Linear(codes, d, bias=False)
        self.centre, self.kept = nn.Parameter(torch.zeros(d)), kept
        with torch.no_grad():
            self.decoder.weight /= self.decoder.weight.norm(dim=0, keepdim=True)
            self.encoder.weight.copy_(self.decoder.weight.T)

    def forward(self, activation):
        code = torch.relu(self.encoder(activation - self.centre))
        value, index = code.topk(self.kept, dim=-1)
        sparse = torch.zeros_like(code).scatter(-1, index, value)
        return self.decoder(sparse) + self.centre


def make_model():
    return Dictionary()


def make_batch():
    return {"activation": torch.randn(2048, 512) * torch.linspace(0.5, 4, 512)}


def loss_fn(made, batch):
    left = (made.float() - batch["activation"]).square().sum(-1)
    all_of_it = (batch["activation"] - batch["activation"].mean(0)).square().sum(-1)
    return (left / all_of_it.clamp(min=1e-6)).mean()
