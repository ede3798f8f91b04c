"""Predictions for image files or texts, a batch at a time; unreadable files are reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_peft.anatomy.forward import first_tensor
from lightning_peft.data.decode import Decoding, open_image, why
from lightning_peft.errors import DataError, some
from lightning_peft.evaluation.outputs import Outputs

__all__ = ["Prediction", "predict_files", "predict_texts"]


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image or text.

    Attributes:
        path: The file; None for a text.
        classes: The most probable classes, best first; empty if the file was not read.
        probabilities: The probability of each.
        values: The probability of each label, or each number; empty for classes that exclude each
            other.
        error: Why the file was not read; empty if it was.
    """

    path: Path | None
    classes: tuple[int, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""
    values: tuple[float, ...] = ()


class _Files(Dataset[tuple[int, Tensor | None, str]]):
    def __init__(
        self, paths: Sequence[Path], decoding: Decoding, transform: Callable[[Any], Tensor]
    ) -> None:
        self.paths = paths
        self.decoding = decoding
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, Tensor | None, str]:
        try:
            with open_image(self.paths[index]) as image:
                return index, self.transform(self.decoding(image)), ""
        except Exception as error:  # a broken file can make PIL's decoders raise anything
            return index, None, why(error)


def predict_files(
    model: nn.Module,
    paths: Sequence[Path],
    *,
    decoding: Decoding,
    transform: Callable[[Any], Tensor],
    top: int = 1,
    batch_size: int = 64,
    num_workers: int = 0,
    outputs: Outputs | None = None,
) -> Iterator[Prediction]:
    """Predict the classes, labels or numbers of image files, in their order.

    Args:
        model: Maps images ``(B, C, H, W)`` to outputs ``(B, K)``; in evaluation mode.
        paths: The files.
        decoding: How they are read, as in the training of the model.
        transform: Maps a PIL image to a tensor ``(C, H, W)``, as in the evaluation of the model.
        top: Number of classes to return for each.
        batch_size: Images at a time.
        num_workers: Processes that read files.
        outputs: How the outputs are read; a softmax over classes by default.

    Yields:
        One prediction for each file, readable or not.

    Raises:
        DataError: If the model computes no output of an image.
    """
    read = Outputs() if outputs is None else outputs
    device = next(model.parameters()).device
    loader: DataLoader[Any] = DataLoader(
        _Files(paths, decoding, transform),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=list,
    )
    for batch in loader:
        images = [image for _, image, _ in batch if image is not None]
        found: Iterator[Tensor] = iter(())
        if images:
            found = iter(_outputs(model, read, torch.stack(images).to(device)))
        for index, image, error in batch:
            if image is None:
                yield Prediction(paths[index], error=error)
            else:
                yield _prediction(paths[index], next(found), read, top)


def predict_texts(
    model: nn.Module,
    texts: Sequence[str],
    *,
    tokenise: Callable[[Sequence[str]], Mapping[str, Tensor]],
    top: int = 1,
    batch_size: int = 64,
    outputs: Outputs | None = None,
) -> Iterator[Prediction]:
    """Predict the classes or labels of texts, in their order.

    Args:
        model: Maps the result of ``tokenise``, as keyword arguments, to outputs ``(B, K)``; in
            evaluation mode.
        texts: The texts.
        tokenise: Maps texts to tensors ``(B, T)``, as in the evaluation of the model.
        top: Number of classes to return for each.
        batch_size: Texts at a time.
        outputs: How the outputs are read; a softmax over classes by default.

    Yields:
        One prediction for each text.

    Raises:
        DataError: If the model computes no output of a text.
    """
    read = Outputs() if outputs is None else outputs
    device = next(model.parameters()).device
    for start in range(0, len(texts), batch_size):
        inputs = tokenise(texts[start : start + batch_size])
        given = {name: value.to(device) for name, value in inputs.items()}
        for values in _outputs(model, read, **given):
            yield _prediction(None, values, read, top)


def _outputs(model: nn.Module, read: Outputs, *inputs: Tensor, **named: Tensor) -> Tensor:
    """Return what is read from the outputs of a model.

    Raises:
        DataError: If the model computes none, such as from a config that does not fit its weights.
    """
    try:
        with torch.inference_mode():
            return read(first_tensor(model(*inputs, **named))).cpu()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a forward may raise anything
        shapes = [str(tuple(tensor.shape)) for tensor in (*inputs, *named.values())]
        told = " ".join(str(error).split())
        raise DataError(
            f"predict: expected inputs that {type(model).__name__} computes an output of, got "
            f"tensors of {some(shapes, 3)}: {type(error).__name__}: {told:.300}. Compare the "
            "settings of the model and of its images with those of the training."
        ) from error


def _prediction(path: Path | None, values: Tensor, read: Outputs, top: int) -> Prediction:
    if read.task == "regression":
        return Prediction(path, values=tuple(values.tolist()))
    if read.task == "multilabel":
        chosen = [k for k in values.argsort(descending=True).tolist() if values[k] > 0.5]
        probabilities = tuple(values[chosen].tolist())
        return Prediction(path, tuple(chosen), probabilities, values=tuple(values.tolist()))
    best, classes = values.topk(min(top, len(values)))
    return Prediction(path, tuple(classes.tolist()), tuple(best.tolist()))
