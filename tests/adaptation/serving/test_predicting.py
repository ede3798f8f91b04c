"""Predictions of a model that computes no outputs are one line, not a traceback of torch."""

import pytest
import torch
from PIL import Image
from torch import nn

import lightning_peft as lp
from lightning_peft.adaptation.serving.predicting import predict_files, predict_texts
from lightning_peft.data.decode import Decoding


def test_a_model_that_computes_nothing_is_named(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    model = nn.Linear(3, 2)
    path, decoding = tmp_path / "a.png", Decoding("L")
    found = predict_files(
        model, [path], decoding=decoding, transform=lambda image: torch.ones(1, 4, 4)
    )
    with pytest.raises(lp.DataError, match=r"Linear computes an output of, got tensors of \(1, 1"):
        list(found)
    texts = predict_texts(model, ["a"], tokenise=lambda texts: {"input": torch.ones(1, 4)})
    with pytest.raises(lp.DataError, match=r"predict: expected inputs .*\(1, 4\): RuntimeError"):
        list(texts)
