"""Tables: pytorch-tabular, which makes the trainer itself."""

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from pytorch_tabular import TabularModel, models
from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig

from tests.wild.case import Case, fixed

DISTRIBUTION = "pytorch-tabular"


def _frame():
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(generator.normal(size=(64, 4)), columns=list("abcd"))
    frame["kind"] = generator.choice(["x", "y", "z"], 64)
    frame["target"] = (frame["a"] + frame["b"] > 0).astype(int)
    return frame


def _tabular(config):
    return TabularModel(
        data_config=DataConfig(
            target=["target"], continuous_cols=list("abcd"), categorical_cols=["kind"]
        ),
        model_config=config(),
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(
            batch_size=16, max_epochs=2, accelerator="cpu", auto_lr_find=False, progress_bar="none",
            early_stopping=None, checkpoints="valid_loss", load_best=True, checkpoints_path="saved",
        ),
        verbose=False, suppress_lightning_logger=True,
    )  # fmt: skip


def _prepared(config):
    tabular = _tabular(config)
    datamodule = tabular.prepare_dataloader(train=_frame(), validation=_frame(), seed=0)
    return tabular, datamodule


def _make(config):
    tabular, datamodule = _prepared(config)
    return tabular.prepare_model(datamodule)


def _package(config):
    def run(callbacks, folder):
        tabular = _tabular(config)
        tabular.fit(train=_frame(), validation=_frame(), callbacks=callbacks(), seed=0)
        expected = tabular.predict(_frame())
        tabular.save_model(str(folder / "saved"))
        found = TabularModel.load_model(str(folder / "saved")).predict(_frame())
        np.testing.assert_allclose(
            found.select_dtypes("number"), expected.select_dtypes("number"), atol=1e-4
        )

    return run


def _case(name, config, new=("_head",), backbone=("_backbone", "_embedding_layer")):
    return Case(
        name,
        lambda: _make(config),
        lambda: fixed(_prepared(config)[1].train_dataloader()),
        backbone=backbone,
        new=new,
        load=lambda: _arguments(config),
        package=_package(config),
    )


def _arguments(config):
    """What the class is built from, which its checkpoints do not hold."""
    tabular, datamodule = _prepared(config)
    inferred = OmegaConf.structured(datamodule.update_config(tabular.config))
    return {"config": tabular.config, "inferred_config": inferred}


CASES = [
    _case("CategoryEmbeddingModel", lambda: models.CategoryEmbeddingModelConfig(
        task="classification", layers="32-16", learning_rate=1e-3), new=("head",)),
    _case("FTTransformerModel", lambda: models.FTTransformerConfig(
        task="classification", input_embed_dim=16, num_heads=2, num_attn_blocks=2)),
    _case("TabTransformerModel", lambda: models.TabTransformerConfig(
        task="classification", input_embed_dim=16, num_heads=2, num_attn_blocks=2)),
    _case("AutoIntModel", lambda: models.AutoIntConfig(
        task="classification", attn_embed_dim=16, num_heads=2, num_attn_blocks=2)),
    _case("GANDALFModel", lambda: models.GANDALFConfig(task="classification", gflu_stages=2),
          new=()),
    _case("DANetModel", lambda: models.DANetConfig(
        task="classification", n_layers=8, abstlay_dim_1=8, k=2)),
]  # fmt: skip
