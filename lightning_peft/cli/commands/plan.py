"""Serve ``lightning-peft plan``: what a method would do to a model, and the memory it needs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_peft.cli.commands.command import run_command
from lightning_peft.cli.config.auto_rate import begun
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.paths import conf_dir
from lightning_peft.cli.config.task import LANGUAGE

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lightning_peft.adaptation.plan import AdaptationPlan

__all__ = ["main"]

MOST_TOKENS, MOST_OF_LANGUAGE = 512, 1024
"""Tokens of a text if nothing else limits them, as in the data modules."""
BATCH, BATCH_OF_LANGUAGE = 32, 8
_PROCESSORS = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda"}


def main(args: Sequence[str]) -> int:
    """Serve ``lightning-peft plan``.

    Args:
        args: The words after the command.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-peft plan",
        description="Show what a method would adapt, layer by layer, and estimate the memory of a "
        "training step next to that of full fine-tuning. No weights are loaded.",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="GROUP=CHOICE | KEY=VALUE",
        help="as for training, such as: model=timm model.backbone=vit_base_patch16_224 method=ssf",
    )
    parser.add_argument("--classes", type=int, default=10, help="classes of the new head")
    parser.add_argument(
        "--batch", type=int,
        help=f"images or texts per step, for the activations [{BATCH}; for a language model "
        "data.batch_size, or 8]",
    )  # fmt: skip
    parser.add_argument(
        "--tokens", type=int, metavar="N",
        help="tokens of each text for model=text and language models [data.max_length, or the "
        f"limit of the model, at most {MOST_TOKENS} and {MOST_OF_LANGUAGE}]",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return run_command(parser, args, _serve)


def _serve(options: argparse.Namespace) -> int:
    tokens = options.tokens
    given = [options.classes, *(n for n in (options.batch, tokens) if n is not None)]
    if min(given) < 1:
        raise ConfigError(["expected --classes, --batch and --tokens of at least 1"])
    found, step = _plan(options.overrides, options.classes, options.batch, tokens)
    if options.json:
        print(json.dumps({**found.to_dict(), **({"step": step} if step else {})}, indent=2))
        return 0
    print(found)
    if step:
        print(
            f"a step: {step['texts']:,} texts of {step['length']:,} tokens, {step['tokens']:,} "
            "tokens altogether, with the loss over the vocabulary"
        )
    return 0


def _plan(
    overrides: Sequence[str], classes: int, batch: int | None, tokens: int | None
) -> tuple[AdaptationPlan, dict[str, int]]:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", ["name=plan", "output_dir=.", *overrides])
    begun(cfg, overrides)

    import torch
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from lightning_peft.adaptation.plan import plan
    from lightning_peft.anatomy.backbone import backbone_of
    from lightning_peft.backbones.data_config import data_config
    from lightning_peft.cli.config.quiet import quiet
    from lightning_peft.cli.jobs.task import build_module

    method = instantiate(cfg.method, _convert_="all")
    with quiet(), torch.device("meta"):
        module = build_module(cfg.model, classes, pretrained=False)  # without weights
    backbone = backbone_of(module)[1]
    # "auto": that of this machine
    processor: Any = _PROCESSORS.get(str(OmegaConf.select(cfg, "trainer.accelerator")))
    memory: Any = OmegaConf.select(cfg, "callbacks.peft.memory") or "default"
    step: dict[str, int] = {}
    if getattr(module, "noun", "images") == "texts":
        if str(cfg.model.get("_target_")) in LANGUAGE:
            texts = _language(cfg, backbone, batch, tokens)
            rows, length = texts["input_ids"].shape
            step = {"texts": rows, "length": length, "tokens": rows * length}
        else:
            texts = _texts(cfg, backbone, batch or BATCH, tokens)
        return plan(backbone, method, inputs=texts, memory=memory, processor=processor), step
    if tokens is not None:
        raise ConfigError(["--tokens: expected model=text, got a model for images. Leave it out."])
    shape = data_config(backbone)
    images = torch.empty(batch or BATCH, shape.channels, *shape.image_size, device="meta")
    return plan(backbone, method, inputs=images, memory=memory, processor=processor), step


def _language(cfg: DictConfig, backbone: Any, batch: int | None, tokens: int | None) -> Any:
    """Return a batch of tokens that are all learned, so that the loss is counted as well."""
    import torch

    from lightning_peft.backbones.causal_lm import length_limit

    most = length_limit(backbone)
    if tokens is not None and most is not None and tokens > most:
        raise ConfigError([f"--tokens: expected at most the {most} that the model reads, "
                           f"got {tokens}"])  # fmt: skip
    of_chat = str(cfg.data.get("_target_")).endswith("ChatDataModule")
    length = tokens or (cfg.data.get("max_length") if of_chat else None)
    length = length or min(most or MOST_OF_LANGUAGE, MOST_OF_LANGUAGE)
    rows = batch or (cfg.data.get("batch_size") if of_chat else None) or BATCH_OF_LANGUAGE
    if LANGUAGE[str(cfg.model.get("_target_"))] == "preference":
        rows *= 2  # a better and a worse answer
    ids = torch.empty(rows, length, dtype=torch.long, device="meta")
    return {"input_ids": ids, "labels": ids.clone(), "use_cache": False}


def _texts(cfg: DictConfig, backbone: Any, batch: int, tokens: int | None) -> dict[str, Any]:
    """Return a batch of texts without padding, which need no mask."""
    import torch

    most = getattr(backbone.config, "max_position_embeddings", None)
    if tokens is not None and most is not None and tokens > most:
        raise ConfigError([f"--tokens: expected at most the {most} that the model reads, "
                           f"got {tokens}"])  # fmt: skip
    length = tokens or cfg.data.get("max_length") or min(most or MOST_TOKENS, MOST_TOKENS)
    return {"input_ids": torch.empty(batch, length, dtype=torch.long, device="meta")}
