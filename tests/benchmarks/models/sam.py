"""SAM ViT-B as in transformers, fine-tuned on boxes: windows and whole images with decomposed relative positions, a
two-way mask decoder, Dice with cross-entropy; 2 images of 1024 x 1024."""

import torch
import torch.nn.functional as F
from transformers import SamConfig, SamModel

BATCH, SIDE, BOXES, LAYERS, GLOBAL = 2, 1024, 1, 12, (2, 5, 8, 11)


def make_model():
    return SamModel(
        SamConfig(vision_config={"num_hidden_layers": LAYERS, "global_attn_indexes": list(GLOBAL), "image_size": SIDE},
                  prompt_encoder_config={"image_size": SIDE})
    )  # fmt: skip


def make_batch():
    corners = SIDE / 2 * torch.rand(BATCH, BOXES, 2)
    boxes = torch.cat([corners, corners + SIDE / 2 * torch.rand(BATCH, BOXES, 2)], dim=-1)
    masks = torch.rand(BATCH, BOXES, SIDE // 4, SIDE // 4) < 0.2
    return {"pixel_values": torch.randn(BATCH, 3, SIDE, SIDE), "input_boxes": boxes, "multimask_output": False,
            "masks": masks.float()}  # fmt: skip


def loss_fn(output, batch):
    logits, masks = output.pred_masks.squeeze(2).float(), batch["masks"]
    shares = logits.sigmoid()
    both = 2 * (shares * masks).sum(dim=(-2, -1))
    dice = 1 - (both + 1) / (shares.sum(dim=(-2, -1)) + masks.sum(dim=(-2, -1)) + 1)
    return dice.mean() + F.binary_cross_entropy_with_logits(logits, masks)
