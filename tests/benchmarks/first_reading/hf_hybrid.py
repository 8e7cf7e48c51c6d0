"""Qwen3-Next of transformers: gated delta rule and gated attention, experts; a small configuration. Careful."""

import torch
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM


def make_model():
    return Qwen3NextForCausalLM(
        Qwen3NextConfig(
            vocab_size=8192,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            linear_num_value_heads=4,
            linear_num_key_heads=2,
            linear_key_head_dim=64,
            linear_value_head_dim=64,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=128,
            shared_expert_intermediate_size=128,
        )
    )


def make_batch():
    ids = torch.randint(0, 8192, (4, 256))
    return {"input_ids": ids, "labels": ids}


def loss_fn(output, batch):
    return output.loss
