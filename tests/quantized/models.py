"""Tiny models whose linear layers are quantised by bitsandbytes, on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import lightning_peft as lp

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import bitsandbytes as bnb

SKIP = ("lm_head", "classifier", "head")


def quantised(model: nn.Module, bits: int) -> nn.Module:
    """Quantise every linear layer outside of the head, as transformers does when it loads one."""
    for name, layer in list(model.named_modules()):
        if type(layer) is not nn.Linear or set(SKIP) & set(name.split(".")):
            continue
        sizes: Any = (layer.in_features, layer.out_features, layer.bias is not None)
        coded = (
            bnb.nn.Linear4bit(*sizes, quant_type="nf4")
            if bits == 4
            else bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=6.0)
        )
        coded.load_state_dict(layer.state_dict())
        holder, _, key = name.rpartition(".")
        setattr(model.get_submodule(holder), key, coded.to("cpu"))
    return model


def dense(model: nn.Module) -> nn.Module:
    """Put plain layers of the weights that the codes stand for, computed by bitsandbytes itself."""
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
            continue
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        with torch.no_grad():
            plain.weight.copy_(dequantised(layer))
            if layer.bias is not None:
                plain.bias.copy_(layer.bias)
        holder, _, key = name.rpartition(".")
        setattr(model.get_submodule(holder), key, plain)
    return model


def dequantised(layer: Any) -> Tensor:
    if isinstance(layer, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    scales = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB
    return bnb.functional.int8_vectorwise_dequant(layer.weight.data, scales)


def llama(bits: int = 4, seed: int = 0) -> Any:
    return quantised(dense_llama(seed), bits)


def dense_llama(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def bert(bits: int = 4) -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=32, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return quantised(BertForSequenceClassification(config), bits)


def vit(bits: int = 4) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=64, depth=2, num_heads=4, num_classes=5
    )
    return quantised(model, bits)


MODELS: dict[str, Callable[[int], Any]] = {"llama": llama, "bert": bert, "vit": vit}


def tokens(count: int = 2) -> Tensor:
    return torch.randint(3, 64, (count, 8), generator=torch.Generator().manual_seed(1))


def output(model: Any) -> Tensor:
    if not hasattr(model, "config"):
        return model(torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32))
    return model(input_ids=tokens(), attention_mask=torch.ones(2, 8, dtype=torch.int64)).logits


def perturbed(adaptation: lp.Adaptation, scale: float = 0.05) -> lp.Adaptation:
    """Move the adapter away from its initial value."""
    drawn = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name in adaptation.adapter_names():
            parameter = adaptation.model.get_parameter(name)
            if parameter.is_floating_point():
                parameter.add_(torch.randn(parameter.shape, generator=drawn) * scale)
    return adaptation
