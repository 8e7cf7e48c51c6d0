"""A byte-level GPT trained on the text of the Python standard library: real text on every machine, nothing downloaded.

The vocabulary is 256 bytes + 1 end of text = 257 on a CPU, and GPT-2's 50257 on a GPU: odd, as real vocabularies are.

    amptune lint examples/gpt.py
    amptune analyze examples/gpt.py --gpu h100
    amptune tune examples/gpt.py --budget 12
"""

import dataclasses
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

END_OF_TEXT = 256


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the model and of one batch."""

    vocab_size: int = 257
    block_size: int = 64
    num_layers: int = 4
    num_heads: int = 4
    width: int = 256
    batch_size: int = 8


SMALL = Config()
GPT2_SMALL = Config(vocab_size=50257, block_size=1024, num_layers=12, num_heads=12, width=768, batch_size=16)


def config() -> Config:
    """GPT-2 small where there is a GPU, a model of 3.3 M parameters elsewhere; GPT_SIZE=small|gpt2 decides by hand."""
    default = "gpt2" if torch.cuda.is_available() else "small"
    return GPT2_SMALL if os.environ.get("GPT_SIZE", default) == "gpt2" else SMALL


class Attention(nn.Module):
    """Causal self-attention with one projection for query, key and value."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = (batch, length, self.num_heads, width // self.num_heads)
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(width)
        self.attn = Attention(width, num_heads)
        self.ln2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.fc2(F.gelu(self.fc1(self.ln2(x)), approximate="tanh"))


class GPT(nn.Module):
    """Decoder-only transformer: token ids (batch, length) -> logits (batch, length, vocab_size)."""

    def __init__(self, cfg: Config = SMALL) -> None:
        super().__init__()
        self.tokens = nn.Embedding(cfg.vocab_size, cfg.width)
        self.positions = nn.Embedding(cfg.block_size, cfg.width)
        self.blocks = nn.ModuleList(Block(cfg.width, cfg.num_heads) for _ in range(cfg.num_layers))
        self.ln_f = nn.LayerNorm(cfg.width)
        self.head = nn.Linear(cfg.width, cfg.vocab_size, bias=False)
        self.apply(_init)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


def _init(module: nn.Module) -> None:
    """GPT-2's initialisation: normal with standard deviation 0.02."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def standard_library_text(limit: int) -> list[int]:
    """The first ``limit`` bytes of the standard library's modules in order of name, each closed by END_OF_TEXT."""
    ids: list[int] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        ids.extend(path.read_bytes())
        ids.append(END_OF_TEXT)
        if len(ids) >= limit:
            break
    return ids[:limit]


def make_model() -> nn.Module:
    return GPT(config())


def train_batches() -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, targets), both (batch, length) int64, drawn from the text by a fixed seed."""
    cfg = config()
    text = torch.tensor(standard_library_text(2_000_000))
    generator = torch.Generator().manual_seed(0)
    while True:
        starts = torch.randint(len(text) - cfg.block_size - 1, (cfg.batch_size,), generator=generator)
        rows = torch.stack([text[start : start + cfg.block_size + 1] for start in starts.tolist()])
        yield rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def make_batch() -> tuple[Tensor, Tensor]:
    return next(train_batches())


def loss_fn(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), batch[1].flatten())


def make_optimizer(params: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=3e-4, fused=True)
