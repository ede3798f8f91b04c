"""Compare loading images that are decoded once with decoding them in each epoch.

    python benchmarks/image_cache.py                          # 200 JPEGs of 500 x 375 pixels
    python benchmarks/image_cache.py --size 1024 --augment light

The images are drawn at random, smoothed and written as JPEGs of quality 90. Each round reads all of
them once in each way, in one process; the cache has been filled before. The speed of the disk is
not measured: both ways find their files in memory.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from figures import CLOCKS, interleaved, timed, write_figures
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from lightning_peft.lightning.datamodules.folder import ImageFolderDataModule


def write_images(root: Path, count: int, size: int) -> None:
    """Write JPEGs of a landscape's shape, in two classes.

    Args:
        root: The folder.
        count: The number of images.
        size: Their width in pixels; the height is three quarters of it.
    """
    from torchvision.io import write_jpeg

    for number in range(count):
        coarse = torch.rand(1, 3, 3 * size // 32, size // 8)
        image = F.interpolate(coarse, (3 * size // 4, size), mode="bicubic")[0]
        image = (255 * image.clamp(0, 1)).to(torch.uint8)
        folder = root / f"class_{number % 2}"
        folder.mkdir(exist_ok=True)
        write_jpeg(image, str(folder / f"{number}.jpg"), quality=90)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, default=500, help="width in pixels")
    parser.add_argument("--augment", default="none", help="a preset")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: with --threads 1")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as directory:
        write_images(Path(directory), options.images, options.size)
        timers = {}
        for name, cache in (("decoded once", True), ("decoded each time", False)):
            data = ImageFolderDataModule(
                directory, augment=options.augment, flip_safe=True, val_fraction=0.0,
                test_fraction=0.0, num_workers=0, cache=cache,
            )  # fmt: skip
            images = data.images("train")

            def read_all(images: object = images) -> None:
                for index in range(len(images)):
                    images[index]

            timers[name] = timed(read_all, CLOCKS[options.clock])
        figures = interleaved(timers, options.rounds, base="decoded once")
    table = Table("way", "ms an image", "ratio", "spread")
    for name, row in figures.items():
        low, high = row["spread"]
        each = 1e3 * row["seconds"] / options.images
        table.add_row(name, f"{each:.2f}", f"{row['ratio']:.1f}", f"{low:.1f} - {high:.1f}")
    Console().print(table)
    write_figures(options, figures=figures)


if __name__ == "__main__":
    main()
