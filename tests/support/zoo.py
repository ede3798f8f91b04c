"""Tiny, randomly initialised backbones of the families that lightning-peft must understand.

`ZOO` maps a name to a factory without arguments, and so does `OUTSIDE` of the module beside, for
what goes wrong elsewhere: `build` knows both. `example_input(name)` gives a batch of two for the
model's forward, `output_of(model, name, inputs)` the tensor that a loss would see. The libraries
are imported inside the factories: only a test that builds a model pays for its library.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.copies import copier
from tests.support.outside import OUTSIDE, example

CLASSES = 3
BATCH = 2
VOCABULARY = 37
TOKENS = 7


def _timm(name: str, **options: Any) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)


_VIT: dict[str, Any] = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}


def vit() -> nn.Module:
    """timm ViT with a class token."""
    return _timm("vit_tiny_patch16_224", **_VIT)


def vit_reg_avg() -> nn.Module:
    """timm ViT with registers, average pooling and no class token: `fc_norm` instead of `norm`."""
    return _timm("vit_medium_patch16_reg4_gap_256", **_VIT)


def deit_distilled() -> nn.Module:
    """timm DeiT with a distillation token: two heads, whose mean is the eval output."""
    return _timm("deit_tiny_distilled_patch16_224", **_VIT)


def swin() -> nn.Module:
    """timm Swin: two stages of two blocks, the second after a patch merging."""
    return _timm(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        patch_size=4,
        window_size=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 2),
    )


def swinv2() -> nn.Module:
    """timm SwinV2: its attention reads `qkv.weight` and never calls `qkv`."""
    return _timm(
        "swinv2_tiny_window8_256",
        img_size=32,
        patch_size=4,
        window_size=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 2),
    )


def beit() -> nn.Module:
    """timm BEiT: `qkv.weight` is read, with a bias put together from `q_bias` and `v_bias`."""
    return _timm("beit_base_patch16_224", init_values=0.1, **_VIT)


def eva() -> nn.Module:
    """timm EVA-02 with a fused qkv whose weight is read, and a gated MLP."""
    return _timm("eva02_tiny_patch14_224", patch_size=16, qkv_fused=True, **_VIT)


def convnext() -> nn.Module:
    """timm ConvNeXt: one, two, one and one blocks; linear MLPs."""
    return _timm("convnext_atto", depths=(1, 2, 1, 1), dims=(8, 16, 16, 24), conv_mlp=False)


def resnet() -> nn.Module:
    """timm ResNet of basic blocks, two in the first stage."""
    return _timm("resnet18", layers=(2, 1, 1, 1), channels=(8, 8, 16, 16), stem_width=8)


def efficientnet() -> nn.Module:
    """timm EfficientNet: depthwise convolutions and squeeze-and-excitation."""
    return _timm("test_efficientnet")


def mixer() -> nn.Module:
    """timm MLP-Mixer: `mlp_tokens` and `mlp_channels` in every block."""
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(num_classes=CLASSES, img_size=32, patch_size=8, num_blocks=2, embed_dim=32)


def bert() -> nn.Module:
    """Hugging Face BERT with a sequence classification head."""
    import transformers as hf

    return hf.BertForSequenceClassification(
        hf.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=16,
            num_labels=CLASSES,
        )
    )


def gpt2() -> nn.Module:
    """Hugging Face GPT-2 (Conv1D layers) with a sequence classification head."""
    import transformers as hf

    return hf.GPT2ForSequenceClassification(
        hf.GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=16,
            n_embd=32,
            n_layer=2,
            n_head=2,
            bos_token_id=1,
            eos_token_id=1,
            pad_token_id=0,
            num_labels=CLASSES,
        )
    )


def llama() -> nn.Module:
    """Hugging Face Llama with grouped keys and values and a sequence classification head."""
    import transformers as hf

    return hf.LlamaForSequenceClassification(
        hf.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=16,
            bos_token_id=1,
            eos_token_id=1,
            pad_token_id=0,
            num_labels=CLASSES,
        )
    )


def t5() -> nn.Module:
    """Hugging Face T5 with a language-model head: no task head; encoder and decoder blocks."""
    import transformers as hf

    return hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=16,
            d_ff=48,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def hf_vit() -> nn.Module:
    """Hugging Face ViT with an image classification head."""
    import transformers as hf

    return hf.ViTForImageClassification(
        hf.ViTConfig(
            image_size=32,
            patch_size=16,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            num_labels=CLASSES,
        )
    )


def tv_resnet() -> nn.Module:
    """torchvision ResNet of basic blocks, one a stage."""
    from torchvision.models.resnet import BasicBlock, ResNet

    # narrower layers take the place of its own: it has no setting for the width
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)
    model.inplanes = 16
    model.conv1 = nn.Conv2d(3, 16, kernel_size=7, stride=2, padding=3, bias=False)
    model.bn1 = nn.BatchNorm2d(16)
    for stage, (planes, stride) in enumerate(((16, 1), (16, 2), (32, 2), (32, 2)), 1):
        setattr(model, f"layer{stage}", model._make_layer(BasicBlock, planes, 1, stride))
    model.fc = nn.Linear(32, CLASSES)
    return model


def tv_vit() -> nn.Module:
    """torchvision ViT: `nn.MultiheadAttention` and an `MLPBlock` that is a Sequential."""
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        image_size=32,
        patch_size=16,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        mlp_dim=48,
        num_classes=CLASSES,
    )


def tv_swin() -> nn.Module:
    """torchvision Swin: its attention function is given `qkv.weight` and never calls `qkv`."""
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        patch_size=[4, 4],
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 2],
        window_size=[4, 4],
        num_classes=CLASSES,
    )


def mlp() -> nn.Module:
    """A plain `nn.Sequential`."""
    return nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
    )


ZOO: dict[str, Callable[[], nn.Module]] = {
    factory.__name__: factory
    for factory in (
        vit, vit_reg_avg, deit_distilled, swin, swinv2, beit, eva, convnext, resnet, efficientnet,
        mixer, bert, gpt2, llama, t5, hf_vit, tv_resnet, tv_vit, tv_swin, mlp,
    )
}  # fmt: skip

LIBRARY: dict[str, str] = {
    name: "transformers"
    if name in ("bert", "gpt2", "llama", "t5", "hf_vit")
    else "torchvision"
    if name.startswith("tv_")
    else "module"
    if name == "mlp"
    else "timm"
    for name in ZOO
}

HEADS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("vit", "vit_reg_avg", "beit", "eva", "mixer"), ("head",)),
    "deit_distilled": ("head", "head_dist"),
    **dict.fromkeys(("swin", "swinv2", "convnext"), ("head.fc",)),
    "resnet": ("fc",),
    "efficientnet": ("classifier",),
    **dict.fromkeys(("bert", "hf_vit"), ("classifier",)),
    **dict.fromkeys(("gpt2", "llama"), ("score",)),
    "t5": (),
    "tv_resnet": ("fc",),
    "tv_vit": ("heads.head",),
    "tv_swin": ("head",),
    "mlp": ("4",),
}
"""The last layers of each model, by hand."""


@functools.cache
def pristine(name: str, seed: int = 0) -> nn.Module:
    """Build a model once a process, to be read and never changed: see `build`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = {**ZOO, **OUTSIDE}[name]().eval()
        for module in model.modules():  # residual branches that start at zero pass no gradient
            scale = getattr(module, "weight", None)
            if isinstance(scale, Tensor) and scale.ndim == 1 and not scale.any():
                nn.init.ones_(scale)
            for key in ("bias", "in_proj_bias"):  # some tuners scale it: a zero hides what they do
                bias = getattr(module, key, None)
                if isinstance(bias, nn.Parameter) and not bias.any():
                    nn.init.normal_(bias, std=0.1)
        for head in HEADS.get(name, ()):
            weight = model.get_submodule(head).weight
            assert isinstance(weight, Tensor)
            nn.init.normal_(weight, std=0.5)
    return model


def build(name: str, seed: int = 0) -> nn.Module:
    """Return a model of a fixed seed, in eval mode, without moving the global random state.

    The last layers get larger weights than their libraries give them (zero or nearly so), for a
    change of the features to show in the output.
    """
    return _copier(name, seed)()


@functools.cache
def _copier(name: str, seed: int) -> Callable[[], nn.Module]:
    return copier(pristine(name, seed))


def example_input(name: str, seed: int = 0) -> Tensor | dict[str, Tensor]:
    """Give a batch of `BATCH` examples: a tensor for vision models, keyword arguments for text."""
    if name in OUTSIDE:
        return example(name, seed)
    generator = torch.Generator().manual_seed(seed)
    if name == "mlp":
        return torch.randn(BATCH, 8, generator=generator)
    if name in ("bert", "gpt2", "llama", "t5"):
        ids = torch.randint(2, VOCABULARY, (BATCH, TOKENS), generator=generator)
        text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if name == "t5":
            text["decoder_input_ids"] = ids[:, :4].clone()
        return text
    return torch.randn(BATCH, 3, 32, 32, generator=generator)


def output_of(
    model: nn.Module, name: str, inputs: Tensor | dict[str, Tensor] | None = None
) -> Tensor:
    """Run the model's forward and give the logits that a loss would see.

    Of two heads in train mode (DeiT distilled) the mean, as in eval mode.
    """
    given = example_input(name) if inputs is None else inputs
    output = model(**given) if isinstance(given, dict) else model(given)
    if isinstance(output, tuple):
        return (output[0] + output[1]) / 2
    return output if isinstance(output, Tensor) else output.logits
