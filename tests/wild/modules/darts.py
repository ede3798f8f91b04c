"""Time series: darts, which makes the trainer itself."""

import numpy as np
from darts import TimeSeries, models

from tests.wild.case import Case, fixed

DISTRIBUTION = "darts"


def _series():
    steps = np.arange(80)
    return TimeSeries.from_values(np.sin(steps / 3).astype(np.float32))


def _model(kind, callbacks=(), **settings):
    trainer = {"accelerator": "cpu", "enable_progress_bar": False, "callbacks": list(callbacks)}
    return kind(
        input_chunk_length=12, output_chunk_length=4, n_epochs=2, batch_size=16, random_state=0,
        pl_trainer_kwargs=trainer, **settings,
    )  # fmt: skip


def _caught(kind, settings):
    """Return the module and the data that darts gives to its trainer."""
    model, caught = _model(kind, **settings), {}
    model._train = lambda trainer, model, datamodule, load_best=False: caught.update(
        module=model, data=datamodule
    )
    model.fit(_series(), val_series=_series())
    return caught


def _package(kind, settings):
    def run(callbacks, folder):
        model = _model(kind, callbacks(), **settings)
        model.fit(_series())
        expected = model.predict(4).values()
        model.save(str(folder / "model.pt"))
        # the file holds the callbacks of the trainer, and darts trusts its own classes only
        found = kind.load(str(folder / "model.pt"), trusted=True).predict(4).values()
        np.testing.assert_allclose(found, expected, atol=1e-4)

    return run


def _batches(kind, settings):
    data = _caught(kind, settings)["data"]
    data.setup("fit") if hasattr(data, "setup") else None
    return fixed(data.val_dataloader())


def _case(kind, new=(), **settings):
    return Case(
        kind.__name__,
        lambda: _caught(kind, settings)["module"],
        lambda: _batches(kind, settings),
        new=new,
        package=_package(kind, settings),
    )


CASES = [
    _case(models.NBEATSModel, num_stacks=2, num_blocks=1, layer_widths=16),
    _case(models.TransformerModel, ("decoder",), d_model=16, nhead=2, dim_feedforward=32),
    _case(models.TiDEModel, hidden_size=16),
    _case(models.TCNModel, num_filters=4),
    _case(models.BlockRNNModel, ("fc",), model="LSTM", hidden_dim=16),
    _case(models.TSMixerModel, hidden_size=16, ff_size=16, num_blocks=2),
]
