"""What the promises except, and why."""

from __future__ import annotations

import re

from tests.contract import tuners
from tests.contract.cases import EVERYWHERE, Case

# methods whose initial output differs from the backbone's, as their own documentation says
NOT_IDENTITY = {*map(tuners.label, tuners.NOT_IDENTITY), "ssf", "vpt_deep", "vpt_shallow"}
# why some cannot be merged although their method says that it can be
NOT_MERGEABLE: dict[tuple[str, str], str] = {
    **{
        (tuners.label(tuner), backbone): said
        for tuner, said in tuners.NOT_MERGEABLE.items()
        for backbone in EVERYWHERE
    },
    **{
        (method, backbone): "does more with its weight than multiply by it"
        for method in ("ssf", "hydra", "repadapter")
        for backbone in ("own_forward",)
    },
    ("ssf", "standardised"): "StdConv2d has no bias to absorb the shift",
    **{
        (method, "spectral_normed"): "cannot hold the merged weight"
        for method in (
            "lora",
            "lora_fa",
            "dora",
            "adalora",
            "ssf",
            "hydra",
            "repadapter",
            "fact_tt",
            "fact_tk",
            "union",
        )
    },
    ("repadapter", "attention_kv"): "reads a weight without a bias to absorb the shift",
    **{
        ("hf:beft", backbone): "Base layer has no bias"
        for backbone in ("llama", "t5", "tied_llama", "mixture")
    },
    **{
        (f"hf:{tuner}", "spectral_normed"): "cannot hold the merged weight"
        for tuner in ("lora", "adalora", "loha", "lokr")
    },
    **{
        ("repadapter", backbone): "reads a weight without a bias to absorb the shift"
        for backbone in ("swinv2", "beit", "eva")
    },
    ("ssf", "swinv2"): "Linear has no bias to absorb the shift",
    **{
        (method, backbone): "has no bias to absorb the shift"
        for method in ("hydra", "repadapter", "ssf")
        for backbone in ("llama", "t5", "tied_llama", "mixture")
    },
    **{
        ("ssf", backbone): "Conv2d has no bias to absorb the shift"
        for backbone in ("resnet", "tv_resnet", "efficientnet")
    },
}
# a shift of all weights by a tenth drives these outputs so far that rounding shows
FAR = {
    *(("hf:fourierft", backbone) for backbone in ("t5", "mixture")),
    *(("hf:gralora", backbone) for backbone in ("t5", "hf_vit")),
}
NO_WAY_BACK = {*map(tuners.label, tuners.NO_WAY_BACK)}

# what has no effect by mathematics, or for want of an input that reaches it
WITHOUT_EFFECT: tuple[tuple[str, str], ...] = (
    # a bias on the keys shifts every score of a query alike, and softmax takes it away
    ("", r"(key|k_proj|SelfAttention\.k|EncDecAttention\.k)\.(base_layer\.)?(beft_)?bias"),
    # one constant on all channels, which the next LayerNorm takes away
    ("hf:glora", r"attn\.proj\.glora_E"),
    ("", r"mlp_tokens\.fc2\..*bias"),  # of MLP-Mixer: one constant on all channels of a token
    # two experts that the sign steps above keep equal
    ("hf:lily", r"lily_router"),
    # the rows of a unit that is dead behind its ReLU
    ("hf:adamss-mlp", r"^2\.adamss_[AB]\.default\.2"),
)


def without_effect(case: Case, name: str) -> bool:
    """Say whether a parameter cannot matter here."""
    return any(str(case).startswith(own) and re.search(p, name) for own, p in WITHOUT_EFFECT)
