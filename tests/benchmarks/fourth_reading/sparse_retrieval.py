"""Queries and documents as sparse weights of words (SPLADE), with a penalty on the work of an index. Careful."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class SparseWords(nn.Module):
    def __init__(self, words=8192, d=256, depth=2):
        super().__init__()
        self.embed = nn.Embedding(words, d)
        nn.init.normal_(self.embed.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(d, 4, 4 * d, dropout=0.0, activation="gelu", batch_first=True)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.bias = nn.Parameter(torch.full((words,), -1.0))

    def weights(self, text):
        hidden = self.body(self.embed(text), src_key_padding_mask=text == 0)
        logits = F.linear(hidden, self.embed.weight, self.bias)
        seen = (text != 0).unsqueeze(-1)
        return (torch.log1p(F.relu(logits)) * seen).amax(1)

    def forward(self, query, document):
        return self.weights(query), self.weights(document)


def make_model():
    return SparseWords()


def make_batch():
    query, document = torch.randint(1, 8192, (16, 16)), torch.randint(1, 8192, (16, 64))
    query[:, 12:], document[8:, 40:] = 0, 0
    return {"query": query, "document": document}


def loss_fn(output, batch):
    query, document = output
    score = query @ document.T
    work = sum(each.float().abs().mean(0).square().sum() for each in output)
    return F.cross_entropy(score, torch.arange(len(score), device=score.device)) + 1e-3 * work
