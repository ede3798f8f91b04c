"""Time series: neuralforecast, which makes the trainer itself."""

import numpy as np
import pandas as pd
from neuralforecast import NeuralForecast, models
from neuralforecast.tsdataset import TimeSeriesDataModule, TimeSeriesDataset

from tests.wild.case import Case, fixed

DISTRIBUTION = "neuralforecast"


def _frame():
    steps = np.arange(60)
    parts = [
        pd.DataFrame({"unique_id": name, "ds": steps, "y": np.sin(steps / 3) + shift})
        for shift, name in enumerate("abcd")
    ]
    return pd.concat(parts).astype({"y": np.float32})


def _model(kind, callbacks=(), **settings):
    return kind(
        h=4, input_size=12, max_steps=8, batch_size=2, accelerator="cpu", random_seed=0,
        windows_batch_size=16, learning_rate=1e-3, enable_progress_bar=False,
        enable_model_summary=False, logger=False, callbacks=list(callbacks), **settings,
    )  # fmt: skip


def _ready(model):
    model.val_size = model.test_size = 4
    return model


def _batches():
    dataset = TimeSeriesDataset.from_df(_frame())[0]
    data = TimeSeriesDataModule(dataset, batch_size=2, shuffle_train=False)
    return fixed(data.train_dataloader())


def _package(kind, settings):
    def run(callbacks, folder):
        forecast = NeuralForecast([_model(kind, callbacks(), **settings)], freq=1)
        forecast.fit(_frame(), val_size=4)
        expected = forecast.predict().select_dtypes("number")
        forecast.save(str(folder / "saved"), overwrite=True)
        found = NeuralForecast.load(str(folder / "saved")).predict().select_dtypes("number")
        np.testing.assert_allclose(found, expected, atol=1e-4)

    return run


def _case(kind, new=(), **settings):
    return Case(
        kind.__name__,
        lambda: _ready(_model(kind, **settings)),
        _batches,
        new=new,
        ready=_ready,
        package=_package(kind, settings),
    )


CASES = [
    _case(models.NHITS, mlp_units=3 * [[16, 16]]),
    _case(models.PatchTST, ("model.head",), hidden_size=16, n_heads=2, patch_len=4,
          linear_hidden_size=32, encoder_layers=2),
    _case(models.TFT, hidden_size=16, n_head=2),
    _case(models.LSTM, ("mlp_decoder",), encoder_hidden_size=16, decoder_hidden_size=16),
    _case(models.VanillaTransformer, hidden_size=16, n_head=2, conv_hidden_size=16),
    _case(models.TiDE, hidden_size=64, decoder_output_dim=8, temporal_decoder_dim=32),
]  # fmt: skip
