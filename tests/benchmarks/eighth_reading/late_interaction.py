"""Retrieval by late interaction: each word of a query finds its best word of a passage. Careful: passages are
closed by a mask that is written row by row, what is padding counts zero by where() and not by a product, and
similarities of words of one passage among themselves leave out their own."""

import torch
import torch.nn as nn
import torch.nn.functional as F

PAD, MASK, COMMON = 0, 1, 8


class Encoder(nn.Module):
    def __init__(self, vocab=2000, dim=128, out=64, depth=2):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim, padding_idx=PAD)
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.out = nn.Linear(dim, out, bias=False)

    def forward(self, tokens, keep):
        h = self.body(self.embed(tokens), src_key_padding_mask=~keep)
        return F.normalize(self.out(h), dim=-1, eps=1e-6)


def scoring_mask(tokens):
    """Words that count in a passage: no padding, no common words, and always the first."""
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask &= tokens != PAD
    mask &= tokens >= COMMON
    mask[:, 0] = True
    return mask


class LateInteraction(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.log_temperature = nn.Parameter(torch.tensor(-3.0))

    def forward(self, queries, passages):
        q = self.encoder(queries, queries != PAD)
        mask = scoring_mask(passages)
        p = self.encoder(passages, passages != PAD)
        similar = torch.einsum("qnd,pmd->qpnm", q, p)
        best = similar.masked_fill(~mask[None, :, None], float("-inf")).amax(-1)
        best = torch.where((queries != PAD)[:, None], best, 0.0)
        scores = best.sum(-1) * torch.exp(-self.log_temperature.clamp(-5.0, 0.0)) / queries.shape[1]
        return scores, self.redundancy(p, mask)

    @staticmethod
    def redundancy(p, mask):
        """How alike the words of a passage are, by the inverse of their distances."""
        apart = (p[:, :, None] - p[:, None]).square().sum(-1)
        both = (mask[:, :, None] & mask[:, None]).float()
        both = both * (1 - torch.eye(p.shape[1], device=p.device))
        near = both / (0.1 + apart)
        return near.sum((1, 2)) / both.sum((1, 2)).clamp(min=1.0)


def make_model():
    return LateInteraction()


def make_batch():
    queries, passages = torch.randint(2, 2000, (16, 12)), torch.randint(2, 2000, (16, 40))
    queries[torch.arange(12) >= torch.randint(4, 13, (16, 1))] = PAD
    passages[torch.arange(40) >= torch.randint(10, 41, (16, 1))] = PAD
    return (queries, passages), torch.arange(16)


def loss_fn(output, batch):
    scores, alike = output
    return F.cross_entropy(scores, batch[1]) + 1e-2 * alike.mean()
