"""What needs no training of a network: scikit-learn on frozen features, or on words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from benchmarks.evidence.methods import Setting
from benchmarks.evidence.models import make
from benchmarks.evidence.tasks import Task, draw
from benchmarks.evidence.train import RECIPE, WORK, data_of, module_of
from benchmarks.quiet import quiet
from lightning_peft.ranking.features import extract
from lightning_peft.system.atomic import written_whole

__all__ = ["Body", "fit", "frozen_features"]


def fit(
    task: Task,
    method: str,
    setting: Setting,
    drawn: Sequence[int],
    measured: Sequence[int],
    features: np.ndarray | None = None,
    further: Sequence[int] = (),
) -> dict[str, Any]:
    """Fit a baseline and measure it.

    Args:
        task: The task.
        method: Its name.
        setting: Neighbours, or the inverse strength of the penalty.
        drawn: The labelled items.
        measured: The items to measure on.
        features: Features of all items ``(N, D)``; not needed for words.
        further: Items from elsewhere to measure on as well.

    Returns:
        The metrics.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler

    labels = np.array(task.labels)
    if method == "bag_of_words":
        inputs: Any = np.array(task.items, dtype=object)
        model = make_pipeline(_words(), LogisticRegression(C=setting.rate, max_iter=5000))
    elif method == "nearest_neighbours":
        inputs = features
        # cosine, as in ranking
        model = make_pipeline(Normalizer(), KNeighborsClassifier(n_neighbors=int(setting.rate)))
    else:
        inputs = features
        model = make_pipeline(StandardScaler(), LogisticRegression(C=setting.rate, max_iter=5000))
    model.fit(inputs[list(drawn)], labels[list(drawn)])

    def measured_on(items: Sequence[int]) -> dict[str, float]:
        truth, found = labels[list(items)], model.predict(inputs[list(items)])
        shares = model.predict_proba(inputs[list(items)])
        return {
            "accuracy": float(accuracy_score(truth, found)),
            "balanced_accuracy": float(balanced_accuracy_score(truth, found)),
            "f1": float(f1_score(truth, found, average="macro")),
            "loss": float(log_loss(truth, shares, labels=range(len(task.classes)))),
        }

    elsewhere = measured_on(further) if further else {}
    return measured_on(measured) | {f"elsewhere_{name}": v for name, v in elsewhere.items()}


def _words() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)


def frozen_features(task: Task) -> np.ndarray:
    """Return the pretrained model's features of all items ``(N, D)``, computed once and kept."""
    recipe = "-".join(f"{k}{v}" for k, v in RECIPE[task.name].items() if k in ("pixels", "tokens"))
    path = make(WORK / "features" / f"{task.name}-{recipe}.npy")
    if not path.exists():
        quiet()
        module: Any = module_of(task, "full", Setting(1e-3))
        first = draw(task, 1, seed=0)  # the data of a run have an item of each class
        everything = [*first, *sorted({*task.pool, *task.test, *task.elsewhere} - {*first})]
        data: Any = data_of(task, first, everything[len(first) :], "val", seed=0, steps=6)
        data.prepare_data()
        data.setup("fit")
        batches = [*data.plain_dataloader("train"), *data.val_dataloader()]
        found = extract(Body(module.backbone), batches, "cpu").values.numpy()
        values = np.zeros((len(task.items), found.shape[1]), dtype=np.float32)
        values[everything] = found
        with written_whole(path) as aside, aside.open("wb") as file:
            np.save(file, values)
    kept: np.ndarray = np.load(path)
    return kept


class Body(nn.Module):
    """A classifier without its head."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        head = "head" if hasattr(model, "head") else "classifier"
        setattr(model, head, nn.Identity())

    def forward(self, inputs: Any) -> Tensor:
        found: Tensor = self.model(inputs) if isinstance(inputs, Tensor) else self.model(**inputs)
        return found
