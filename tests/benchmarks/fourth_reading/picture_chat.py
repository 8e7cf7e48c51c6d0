"""Pictures put among the embeddings of words. Planted: what the projector gives is in 16 bits, the embeddings are in
FP32, and masked_scatter takes two of one dtype alone."""

import torch
from torch import nn

PICTURE = 1


class PictureChat(nn.Module):
    def __init__(self, words=16384, d=256, depth=4, patch=16, places=64):
        super().__init__()
        self.words = nn.Embedding(words, d)
        self.patches = nn.Conv2d(3, d, patch, patch)
        self.projector = nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, d))
        layer = nn.TransformerEncoderLayer(d, 4, 4 * d, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(d, words, bias=False)

    def forward(self, tokens, picture):
        seen = self.projector(self.patches(picture).flatten(2).transpose(1, 2))
        x = self.words(tokens)
        here = (tokens == PICTURE).unsqueeze(-1).expand_as(x)
        x = x.masked_scatter(here, seen)  # planted: G301
        causal = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=x.device)
        return self.head(self.body(x, mask=causal, is_causal=True))


def make_model():
    return PictureChat()


def make_batch():
    tokens = torch.randint(2, 16384, (4, 128))
    tokens[:, 8:24] = PICTURE
    return {"tokens": tokens, "picture": torch.randn(4, 3, 64, 64)}


def loss_fn(output, batch):
    return nn.functional.cross_entropy(output[:, :-1].flatten(0, 1), batch["tokens"][:, 1:].flatten())
