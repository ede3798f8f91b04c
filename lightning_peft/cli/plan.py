"""``lightning-peft plan``: what a method would do to a model, and what training would need."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_peft.cli.command import run_command
from lightning_peft.cli.errors import ConfigError
from lightning_peft.cli.paths import conf_dir

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lightning_peft.planning import AdaptationPlan

__all__ = ["main"]


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
        "training step beside that of full fine-tuning. No weights are loaded.",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="GROUP=CHOICE | KEY=VALUE",
        help="as for training, such as: model=timm model.backbone=vit_base_patch16_224 method=ssf",
    )
    parser.add_argument("--classes", type=int, default=10, help="classes of the new head")
    parser.add_argument("--batch", type=int, default=32, help="images a step, for the activations")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return run_command(parser, args, _serve)


def _serve(options: argparse.Namespace) -> int:
    if options.classes < 1 or options.batch < 1:
        raise ConfigError(["expected --classes and --batch of at least 1"])
    found = _plan(options.overrides, options.classes, options.batch)
    print(json.dumps(found.to_dict(), indent=2) if options.json else found)
    return 0


def _plan(overrides: Sequence[str], classes: int, batch: int) -> AdaptationPlan:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", ["name=plan", "output_dir=.", *overrides])

    import torch
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from lightning_peft.cli.quiet import quiet
    from lightning_peft.data_config import data_config
    from lightning_peft.planning import plan

    method = instantiate(cfg.method, _convert_="all")
    with quiet(), torch.device("meta"):
        backbone = _backbone(cfg, classes)
    shape = data_config(backbone)
    images = torch.empty(batch, shape.channels, *shape.image_size, device="meta")
    memory: Any = OmegaConf.select(cfg, "callbacks.peft.memory") or "default"
    return plan(backbone, method, inputs=images, memory=memory)


def _backbone(cfg: DictConfig, classes: int) -> Any:
    """Build the model of the config without weights, and take its backbone."""
    from lightning_peft.cli.task import build_module
    from lightning_peft.lifecycle import backbone_of

    return backbone_of(build_module(cfg.model, classes, pretrained=False))[1]
