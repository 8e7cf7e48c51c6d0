"""SegFormer-B2 as in transformers, 8 images of 512 x 512 with 150 classes a pixel."""

import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

BATCH, SIDE, CLASSES, DEPTHS = 8, 512, 150, (3, 4, 6, 3)


def make_model():
    return SegformerForSemanticSegmentation(
        SegformerConfig(depths=list(DEPTHS), hidden_sizes=[64, 128, 320, 512], decoder_hidden_size=768,
                        num_labels=CLASSES)
    )  # fmt: skip


def make_batch():
    return {"pixel_values": torch.randn(BATCH, 3, SIDE, SIDE), "labels": torch.randint(0, CLASSES, (BATCH, SIDE, SIDE))}
