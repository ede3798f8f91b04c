"""Serve ``lightning-peft plan``: what a method would do to a model, and the memory it needs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_peft.cli.commands.command import run_command
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.paths import conf_dir

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lightning_peft.adaptation.plan import AdaptationPlan

__all__ = ["main"]

MOST_TOKENS = 512
_PROCESSORS = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda"}
"""Tokens of a text if nothing else limits them, as in the data module."""


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
        "--batch", type=int, default=32, help="images or texts per step, for the activations"
    )
    parser.add_argument(
        "--tokens", type=int, metavar="N",
        help="tokens of each text for model=text [data.max_length, or the limit of the model, at "
        f"most {MOST_TOKENS}]",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return run_command(parser, args, _serve)


def _serve(options: argparse.Namespace) -> int:
    tokens = options.tokens
    if options.classes < 1 or options.batch < 1 or (tokens is not None and tokens < 1):
        raise ConfigError(["expected --classes, --batch and --tokens of at least 1"])
    found = _plan(options.overrides, options.classes, options.batch, tokens)
    print(json.dumps(found.to_dict(), indent=2) if options.json else found)
    return 0


def _plan(overrides: Sequence[str], classes: int, batch: int, tokens: int | None) -> AdaptationPlan:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", ["name=plan", "output_dir=.", *overrides])

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
    if getattr(module, "noun", "images") == "texts":
        texts = _texts(cfg, backbone, batch, tokens)
        return plan(backbone, method, inputs=texts, memory=memory, processor=processor)
    if tokens is not None:
        raise ConfigError(["--tokens: expected model=text, got a model for images. Leave it out."])
    shape = data_config(backbone)
    images = torch.empty(batch, shape.channels, *shape.image_size, device="meta")
    return plan(backbone, method, inputs=images, memory=memory, processor=processor)


def _texts(cfg: DictConfig, backbone: Any, batch: int, tokens: int | None) -> dict[str, Any]:
    """Return a batch of texts without padding, which need no mask."""
    import torch

    most = getattr(backbone.config, "max_position_embeddings", None)
    if tokens is not None and most is not None and tokens > most:
        raise ConfigError([f"--tokens: expected at most the {most} that the model reads, "
                           f"got {tokens}"])  # fmt: skip
    length = tokens or cfg.data.get("max_length") or min(most or MOST_TOKENS, MOST_TOKENS)
    return {"input_ids": torch.empty(batch, length, dtype=torch.long, device="meta")}
