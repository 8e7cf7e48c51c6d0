"""CLIP ViT-B/32 as in transformers: both encoders and the contrastive loss, 128 images of 224 x 224 with captions."""

import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel

BATCH, TOKENS, LAYERS, END = 128, 77, 12, 49407


def make_model():
    return CLIPModel(CLIPConfig(text_config={"num_hidden_layers": LAYERS}, vision_config={"num_hidden_layers": LAYERS}))


def make_batch():
    ids = torch.randint(1000, 49000, (BATCH, TOKENS))
    ids[:, -1] = END
    return {"input_ids": ids, "pixel_values": torch.randn(BATCH, 3, 224, 224)}


def loss_fn(output, batch):
    pairs = torch.arange(len(output.logits_per_text), device=output.logits_per_text.device)
    return (F.cross_entropy(output.logits_per_text, pairs) + F.cross_entropy(output.logits_per_image, pairs)) / 2
