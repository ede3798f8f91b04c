"""Baselines on pixels: accuracies that a fine-tuned backbone has to beat."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from lightning_peft.errors import DataError, require

__all__ = ["logistic_regression", "nearest_neighbour"]

_STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)


class HasPixels(Protocol):
    """A data module that returns its images without preparation."""

    def pixels(self, split: str) -> tuple[Tensor, Tensor]:
        """Return pixels in [0, 1] of shape ``(N, D)`` and labels ``(N,)`` of a split."""
        ...


def nearest_neighbour(datamodule: HasPixels) -> float:
    """Classify each test image as the training image whose pixels are closest.

    Args:
        datamodule: A data module with ``pixels(split)``, such as ``DigitsDataModule``.

    Returns:
        Accuracy on the test set, in [0, 1].

    Raises:
        DataError: If the data module does not return pixels.
        MissingExtraError: If scikit-learn is not installed.
    """
    neighbors = require("sklearn.neighbors", "data")
    train, _, test = _splits(datamodule)
    model = neighbors.KNeighborsClassifier(n_neighbors=1).fit(*train)
    return float(model.score(*test))


def logistic_regression(datamodule: HasPixels) -> float:
    """Classify the test images by a linear model of their pixels.

    The strength of its L2 penalty is chosen on the validation split, or is scikit-learn's default
    without one.

    Args:
        datamodule: A data module with ``pixels(split)``, such as ``DigitsDataModule``.

    Returns:
        Accuracy on the test set, in [0, 1].

    Raises:
        DataError: If the data module does not return pixels.
        MissingExtraError: If scikit-learn is not installed.
    """
    linear = require("sklearn.linear_model", "data")
    train, val, test = _splits(datamodule)
    strengths = _STRENGTHS if len(val[1]) else (1.0,)
    models = [linear.LogisticRegression(C=c, max_iter=10_000).fit(*train) for c in strengths]
    best = max(models, key=lambda model: model.score(*val)) if len(val[1]) else models[0]
    return float(best.score(*test))


def _splits(datamodule: HasPixels) -> list[tuple[Any, Any]]:
    if not hasattr(datamodule, "pixels"):
        raise DataError(
            f"Expected a data module with pixels(split), as DigitsDataModule has it, got "
            f"{type(datamodule).__name__}: pixel baselines need the images as they are."
        )
    found = [datamodule.pixels(split) for split in ("train", "val", "test")]
    return [(pixels.numpy(), labels.numpy()) for pixels, labels in found]
