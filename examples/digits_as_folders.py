"""Write scikit-learn's handwritten digits as a folder of images, a directory for each class.

    python examples/digits_as_folders.py digits
    lightning-peft model=glyph_vit data=folder data.root=digits data.labels_per_class=10

It stands for your own folder of images; docs/walk.md starts from it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits


def write(root: Path) -> int:
    """Write ``root/3/0017.png`` and so on, and return the number of images."""
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = root / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        # 17 levels of gray, of which the last is white; the pen is bright
        Image.fromarray((image * 255 / 16).round().astype("uint8")).save(path)
    return len(digits.images)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="the directory to create")
    root = parser.parse_args().root
    print(f"{write(root):,} images in {root}")
