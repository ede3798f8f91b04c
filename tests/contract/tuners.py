"""The tuners of the installed ``peft`` on every backbone: their settings, and what is refused."""

from __future__ import annotations

from lightning_peft.methods import list_tuners
from tests.support.zoo import ZOO

# what a tuner cannot do without, or a size that fits the tiny models
SETTINGS: dict[str, dict] = {
    "ADALORA": {"total_step": 10},
    "BOFT": {"boft_block_size": 2},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 40},
    "GRALORA": {"gralora_k": 1, "r": 4},
    "LOHA": {"r": 2},
    "MISS": {"r": 2},
    "OFT": {"oft_block_size": 4, "r": 0},
    "PSOFT": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "VBLORA": {"num_vectors": 8, "vector_length": 8},
    "VERA": {"r": 16},
    "WAVEFT": {"n_frequency": 40},
}
TUNERS = tuple(name for name, reason in list_tuners().items() if reason is None)
BACKBONES = tuple(ZOO)

CONVOLUTIONAL = ("efficientnet", "resnet", "tv_resnet")
READ = ("beit", "eva", "swinv2", "tv_swin", "tv_vit")  # by others, which do not call the layers

# all other tuners of peft have linear layers only, and most have no transposed ones
SERVE_CONVOLUTIONS = ("ADALORA", "HIRA", "HRA", "IA3", "LOHA", "LOKR", "LORA")
SERVE_GPT2 = (
    *("ADALORA", "DEFT", "FOURIERFT", "FROD", "GRALORA", "HIRA", "IA3", "LORA"),
    *("PVERA", "RANDLORA", "TINYLORA", "UNILORA", "VBLORA", "VERA", "WAVEFT"),
)
REFUSED_BY_PEFT = "peft refuses to adapt this|expected peft to adapt every target"
_RULES: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (("LILY",), READ, "since its update depends on the input"),
    (("BEFT",), ("beit", "eva", "swinv2"), "expected layers with a bias to train"),
    (tuple(t for t in TUNERS if t not in SERVE_CONVOLUTIONS), CONVOLUTIONAL, REFUSED_BY_PEFT),
    (tuple(t for t in TUNERS if t not in SERVE_GPT2), ("gpt2",), REFUSED_BY_PEFT),
    (("OFT",), CONVOLUTIONAL, "right for linear layers and ungrouped 1x1 convolutions only"),
    (("TINYLORA",), CONVOLUTIONAL, "TinyLoRA adapts linear layers"),
    # layers of several widths in one kind of module
    (("FROD",), ("convnext", "swin", "swinv2", "tv_swin"), "peft refuses to adapt this"),
    # layers whose sizes are no multiples of a setting
    (("BOFT", "C3A", "ROAD", "VBLORA"), ("eva",), "peft refuses to adapt this"),
    (("C3A", "ROAD", "SHIRA", "VBLORA"), ("swinv2",), "peft refuses to adapt this"),
    # a layer with three outputs, which is no multiple of any size
    (("GRALORA", "PSOFT"), ("mlp",), "expected a rank no larger than the layer"),
    (("GRALORA", "PSOFT"), ("swinv2",), "expected a rank no larger than the layer"),
    (("C3A", "ROAD", "SUPERTUNING", "VBLORA"), ("mlp",), "peft refuses to adapt this"),
)
REFUSED: dict[tuple[str, str], str] = {
    (tuner, backbone): said
    for tuners, backbones, said in _RULES
    for tuner in tuners
    for backbone in backbones
}
for _backbone in BACKBONES:
    REFUSED.pop(("LN_TUNING", _backbone), None)  # no linear layers at all, norms only
REFUSED["LN_TUNING", "mlp"] = "this model has no such layers"

# whose initial output differs from the backbone's, as their own documentation says
NOT_IDENTITY = ("C3A", "FOURIERFT", "UNILORA", "VBLORA")
# peft's OSF writes into the weights for good and hooks closures into its layers
NO_WAY_BACK = ("OSF",)
# which read the weights when they are injected: the meta device has none
NEEDS_WEIGHTS = ("ADAMSS", "BOFT", "FROD", "SHIRA", "UNILORA")
NOT_MERGEABLE = {"LILY": "not supported for Lily"}


def label(tuner: str) -> str:
    """Give the name under which a tuner stands among the cases."""
    return f"hf:{tuner.lower()}"
