"""Time series: pytorch-forecasting."""

import numpy as np
import pandas as pd
import pytorch_forecasting as ptf

from tests.wild.case import Case, fixed

DISTRIBUTION = "pytorch-forecasting"


def _dataset(**changes):
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "time": np.tile(np.arange(40), 3),
            "group": np.repeat(["a", "b", "c"], 40),
            "value": generator.normal(size=120).cumsum() / 5,
            "known": generator.normal(size=120),
        }
    )
    settings = {
        "time_idx": "time", "target": "value", "group_ids": ["group"],
        "max_encoder_length": 12, "max_prediction_length": 4,
        "time_varying_unknown_reals": ["value"], "time_varying_known_reals": ["known"],
        "static_categoricals": ["group"],
    }  # fmt: skip
    return ptf.TimeSeriesDataSet(frame, **(settings | changes))


ALONE = {"time_varying_known_reals": [], "static_categoricals": []}


def _loader(**changes):
    data = _dataset(**changes)
    return lambda: fixed(data.to_dataloader(train=False, batch_size=8))


def _case(name, kind, new, changes=None, **settings):
    changes = changes or {}
    return Case(
        name,
        lambda: kind.from_dataset(_dataset(**changes), learning_rate=1e-3, **settings),
        _loader(**changes),
        new=new,
    )


CASES = [
    _case(
        "TemporalFusionTransformer", ptf.TemporalFusionTransformer, ("output_layer",),
        hidden_size=16, attention_head_size=2, loss=ptf.QuantileLoss(),
    ),
    _case("NBeats", ptf.NBeats, (), ALONE, widths=[16, 32], num_blocks=[1, 1]),
    _case("NHiTS", ptf.NHiTS, (), hidden_size=16, loss=ptf.MAE()),
    _case("DeepAR", ptf.DeepAR, ("distribution_projector",),
          {"time_varying_known_reals": ["known"]}, hidden_size=16),
    _case("RecurrentNetwork", ptf.RecurrentNetwork, ("output_projector",), hidden_size=16),
    _case("DecoderMLP", ptf.DecoderMLP, (), hidden_size=16, n_hidden_layers=2),
    _case("TiDEModel", ptf.TiDEModel, (), hidden_size=16),
]  # fmt: skip
