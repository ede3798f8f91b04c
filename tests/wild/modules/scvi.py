"""Single cells: scvi-tools, which makes the trainer itself."""

import numpy as np
import scvi
from scvi.dataloaders import AnnDataLoader
from scvi.train import SemiSupervisedTrainingPlan, TrainingPlan

from tests.wild.case import Case, fixed

DISTRIBUTION = "scvi-tools"


def _cells():
    return scvi.data.synthetic_iid(batch_size=32, n_genes=24, n_proteins=6, n_regions=20)


def _model(kind, **settings):
    cells = _cells()
    keys = {"batch_key": "batch"}
    if kind is scvi.model.SCANVI:
        keys |= {"labels_key": "labels", "unlabeled_category": "unknown"}
    if kind is scvi.model.TOTALVI:
        keys["protein_expression_obsm_key"] = "protein_expression"
    kind.setup_anndata(cells, **keys)
    return kind(cells, **settings)


def _plan(kind, plan=TrainingPlan, **settings):
    made = plan(**_arguments(kind, plan, settings))
    made.n_obs_training = made.n_obs_validation = 64
    return made


def _arguments(kind, plan, settings):
    model = _model(kind, **settings)
    extra = {"n_classes": model.n_labels} if plan is SemiSupervisedTrainingPlan else {}
    return {"module": model.module, **extra}


def _package(kind, **settings):
    def run(callbacks, folder):
        model = _model(kind, **settings)
        model.train(
            max_epochs=2, accelerator="cpu", callbacks=callbacks(), enable_progress_bar=False
        )
        expected = model.get_latent_representation()
        model.save(folder / "model")
        loaded = kind.load(folder / "model", adata=model.adata)
        np.testing.assert_allclose(loaded.get_latent_representation(), expected, atol=1e-4)

    return run


def _case(kind, plan=TrainingPlan, **settings):
    settings |= {"n_latent": 4, "n_hidden": 16}
    return Case(
        kind.__name__,
        lambda: _plan(kind, plan, **settings),
        lambda: fixed(AnnDataLoader(_model(kind, **settings).adata_manager, batch_size=16)),
        backbone=("module",),
        load=lambda: _arguments(kind, plan, settings),
        package=_package(kind, **settings),
        falls="its weight of the KL term grows with the epochs",
    )


CASES = [
    _case(scvi.model.SCVI, n_layers=2),
    _case(scvi.model.SCANVI, SemiSupervisedTrainingPlan, n_layers=2),
    _case(scvi.model.LinearSCVI, n_layers=2),
    _case(scvi.model.PEAKVI, n_layers_encoder=2),
]
