"""Pretrain ``glyph_vit`` on synthetic glyphs: ``python -m tools.glyph_vit.pretrain``.

Writes the weights, the record that loading verifies (``glyph_vit.json``) and the model card. The
data are rendered from matplotlib's fonts; no image of any data set is seen.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]

from lightning_peft.backbones.glyph_vit import WEIGHTS, glyph_vit
from tools.glyph_vit import deform, glyphs
from tools.glyph_vit.card import model_card
from tools.glyph_vit.muon import Muon

__all__ = ["Recipe", "evaluate", "held_out_accuracy", "main", "train", "write_release"]

MEAN, STD = 0.25, 0.3  # of synthesized images, rounded


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the backbone is trained.

    Attributes:
        steps: Optimizer steps.
        batch_size: Images a step, all of them new.
        lr: Peak learning rate of AdamW, which trains what is not a matrix of a block.
        matrix_lr: Peak learning rate of Muon, which trains the blocks' matrices.
        weight_decay: Of matrices and convolutions.
        patch_drop: Fraction of tokens left out; it halves the cost of a step and regularizes.
        full_tokens_from: Fraction of the run after which no token is left out.
        decay_from: Fraction of the run after which the learning rate falls linearly to zero.
        ramp: Fraction of the run over which the deformation grows to its full strength.
        label_smoothing: Of the cross-entropy.
        ema: Decay of the averaged weights, which are the ones that are kept.
        seed: Of the initial weights and of every image.
    """

    steps: int = 2400
    batch_size: int = 128
    lr: float = 2e-3
    matrix_lr: float = 0.02
    weight_decay: float = 0.05
    patch_drop: float = 0.5
    full_tokens_from: float = 0.75
    decay_from: float = 0.5
    ramp: float = 0.4
    label_smoothing: float = 0.1
    ema: float = 0.99
    seed: int = 0


def _optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    matrices: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if name.startswith("blocks.") and parameter.ndim == 2:
            matrices.append(parameter)
        else:
            (decayed if parameter.ndim in (2, 4) else plain).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [
        torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98)),
        Muon(matrices, lr=recipe.matrix_lr, weight_decay=recipe.weight_decay),
    ]


def _lr_multiplier(progress: float, recipe: Recipe) -> float:
    """Linear from 0 over 3 % of the run, flat, linear to 0 from ``decay_from`` on."""
    return min(1.0, progress / 0.03, (1 - progress) / (1 - recipe.decay_from))


def train(bank: glyphs.GlyphBank, recipe: Recipe, *, progress: bool = True) -> nn.Module:
    """Train a model from scratch to name glyphs.

    Args:
        bank: The glyphs to draw from, as often as ``bank.chances()`` says.
        recipe: The hyperparameters.
        progress: Show a progress bar.

    Returns:
        The model with averaged weights, in evaluation mode.
    """
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    model = glyph_vit(num_classes=len(bank.classes), patch_drop_rate=recipe.patch_drop).train()
    average = copy.deepcopy(model).requires_grad_(False).eval()
    optimizers = _optimizers(model, recipe)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    chances = bank.chances()
    pairs = [
        (mean, value)
        for mean, value in zip(
            average.state_dict().values(), model.state_dict().values(), strict=True
        )
        if mean.is_floating_point()
    ]
    bar = tqdm(range(recipe.steps), desc="pretrain", unit="step", disable=not progress)
    for step in bar:
        done = step / recipe.steps
        if done >= recipe.full_tokens_from:
            model.patch_drop = nn.Identity()
        rows = torch.multinomial(chances, recipe.batch_size, replacement=True, generator=generator)
        strength = min(1.0, 0.1 + 0.9 * done / recipe.ramp)
        images = deform.synthesize(bank.fields[rows], strength, generator)
        loss = F.cross_entropy(
            model((images - MEAN) / STD),
            bank.labels[rows],
            label_smoothing=recipe.label_smoothing,
        )
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        multiplier = _lr_multiplier((step + 1) / (recipe.steps + 1), recipe)
        for optimizer, lrs in zip(optimizers, peaks, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * multiplier
            optimizer.step()
        keep = min(recipe.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for mean, value in pairs:
                mean.lerp_(value, 1 - keep)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    average.patch_drop = nn.Identity()
    return average


@torch.no_grad()
def evaluate(model: nn.Module, bank: glyphs.GlyphBank, strength: float, seed: int = 1) -> float:
    """Share of a bank's glyphs that the model names, each drawn once.

    Args:
        model: The model, in evaluation mode.
        bank: Glyphs, of fonts that training did not see.
        strength: Of the deformation, as in ``deform.synthesize``.
        seed: Of the deformation.

    Returns:
        Accuracy in [0, 1] over glyphs.
    """
    generator = torch.Generator().manual_seed(seed)
    right = 0
    for fields, labels in zip(bank.fields.split(256), bank.labels.split(256), strict=True):
        images = deform.synthesize(fields, strength, generator)
        right += int((model((images - MEAN) / STD).argmax(1) == labels).sum())
    return right / len(bank.labels)


def held_out_accuracy(
    model: nn.Module, bank: glyphs.GlyphBank, fonts: Sequence[str]
) -> dict[str, float]:
    """Accuracy on fonts that training did not see: bare and deformed, of all and of common glyphs.

    Args:
        model: The model, in evaluation mode.
        bank: Rendered glyphs, of these fonts and others.
        fonts: The held-out fonts.

    Returns:
        ``held_out_plain`` and ``held_out_deformed`` over all classes, and the same with
        ``_alphanumeric`` over digits and Latin letters.
    """
    latin = [c for c in bank.classes if c in glyphs.ALPHANUMERIC]
    parts = {"": bank.select(fonts), "_alphanumeric": bank.select(fonts, latin)}
    return {
        f"held_out_{name}{suffix}": evaluate(model, part, strength)
        for suffix, part in parts.items()
        for name, strength in (("plain", 0.0), ("deformed", 1.0))
    }


def write_release(
    model: nn.Module, out: Path, classes: Sequence[str], recipe: Recipe, results: dict[str, float]
) -> None:
    """Write ``glyph_vit.safetensors``, ``glyph_vit.json`` and ``glyph_vit.md``.

    Args:
        model: The trained model.
        out: Folder; made if absent.
        classes: Label characters.
        recipe: How it was trained.
        results: Measurements for the card and the record.
    """
    out.mkdir(parents=True, exist_ok=True)
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    content = safetensors.torch.save(state)
    record = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "num_classes": len(classes),
        "classes": "".join(classes),
        "mean": MEAN,
        "std": STD,
        "recipe": dataclasses.asdict(recipe),
        "results": {name: round(value, 4) for name, value in results.items()},
        "made_with": {
            "torch": str(torch.__version__),
            "timm": timm.__version__,
            "python": platform.python_version(),
        },
    }
    (out / "glyph_vit.safetensors").write_bytes(content)
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    (out / "glyph_vit.json").write_text(text, encoding="utf-8")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    (out / "glyph_vit.md").write_text(
        model_card(record, parameters=parameters, size=len(content)), encoding="utf-8"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.glyph_vit.pretrain", description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=WEIGHTS.parent,
        help="folder to write the files to (default: the package, replacing what it ships)",
    )
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=Recipe.batch_size)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--fonts", nargs="+", help="training fonts, instead of all (for a quick look)"
    )
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error(f"expected --steps of at least 1, got {args.steps}")
    torch.set_num_threads(args.threads)
    started = time.perf_counter()
    train_fonts = args.fonts or glyphs.TRAIN_FONTS
    held_out_fonts = glyphs.HELD_OUT_FONTS if args.fonts is None else args.fonts[:1]
    bank = glyphs.render_bank([*train_fonts, *held_out_fonts])
    print(f"{len(bank.labels)} glyphs of {len(bank.classes)} classes")
    recipe = Recipe(steps=args.steps, batch_size=args.batch_size, seed=args.seed)
    model = train(bank.select(train_fonts), recipe)
    results = {"minutes": (time.perf_counter() - started) / 60}
    results |= held_out_accuracy(model, bank, held_out_fonts)
    write_release(model, args.out, bank.classes, recipe, results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
