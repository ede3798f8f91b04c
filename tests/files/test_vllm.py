"""Our adapter files by the rules of vLLM's loader, which are written down here once more.

From vLLM's ``PEFTHelper`` (vllm/lora/peft_helper.py: ``r``, ``lora_alpha`` and ``target_modules``
are required, ``modules_to_save`` is None, no DoRA, no bias, ``r`` at most ``max_lora_rank``) and
``parse_fine_tuned_lora_name`` (vllm/lora/utils.py: names are ``base_model.model.<module>.lora_A``
or ``lora_B`` and ``.weight``).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
from safetensors.torch import load_file

import lightning_peft as lp
from lightning_peft.files.vllm import vllm_problems, vllm_rank
from tests.support.language import tiny_lm


def written(method: Any, directory: Path, **settings: Any) -> tuple[dict[str, Any], Any]:
    lp.adapt(tiny_lm(), method, **settings).save(directory)
    config = json.loads((directory / "adapter_config.json").read_text())
    return config, load_file(directory / "adapter_model.safetensors")


@pytest.mark.parametrize("method", [lp.LoRA(rank=4), lp.LoRA(rank=4, targets="attention")])
def test_what_is_exported_is_what_its_loader_takes(method: Any, tmp_path: Path) -> None:
    config, tensors = written(method, tmp_path)
    assert {"r", "lora_alpha", "target_modules"} <= set(config)
    assert not config["modules_to_save"]
    assert not config["use_dora"]
    assert config["bias"] == "none"
    assert config["r"] <= 16
    modules = dict(tiny_lm().named_modules())
    shape = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
    for name, tensor in tensors.items():
        found = shape.fullmatch(name)
        assert found, name
        layer = modules[found["module"]]
        assert found["module"].rpartition(".")[2] in config["target_modules"]
        wanted = {"A": (4, layer.in_features), "B": (layer.out_features, 4)}
        assert tuple(tensor.shape) == wanted[found["factor"]]
    assert vllm_problems(config, tensors) == []
    assert vllm_rank(config) is None


Q: dict[str, Any] = {"r": 4, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("method", "match"),
    [
        (lp.DoRA(rank=4), "no DoRA"),
        (peft.LoraConfig(**Q, modules_to_save=["lm_head"]), "modules_to_save"),
        (peft.LoraConfig(**Q, rank_pattern={"0.self_attn.q_proj": 2}), "rank_pattern, and scales"),
        (peft.LoHaConfig(**Q), "LoRA only, not LOHA"),
        (peft.LoraConfig(**Q, trainable_token_indices=[3]), "no tensors such as .*embed_tokens"),
    ],
    ids=["dora", "saved", "pattern", "loha", "rows"],
)
def test_what_it_refuses_is_named(method: Any, match: str, tmp_path: Path) -> None:
    config, tensors = written(method, tmp_path)
    assert re.search(match, "; ".join(vllm_problems(config, tensors)))


def test_a_high_rank_needs_its_option_and_a_bias_is_refused() -> None:
    assert [vllm_rank({"r": r}) for r in (16, 17, 64, 300)] == [None, 32, 64, 320]
    (problem,) = vllm_problems({"peft_type": "LORA", "r": 600}, [])
    assert problem == "its ranks end at 512, this one is 600"
    (problem,) = vllm_problems({"peft_type": "LORA", "r": 4, "bias": "lora_only"}, [])
    assert problem == "it has no biases in adapters"
