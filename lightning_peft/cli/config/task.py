"""Fit a config to its task: the module, the metrics to monitor, and what must not be chosen on."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_peft.cli.config.check import locate
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.objectives import better, directions_of, names_of
from lightning_peft.evaluation.metric_names import MAIN, is_test

__all__ = [
    "LANGUAGE",
    "check_objective",
    "fit_to_task",
    "of_the_test_set",
    "refuse_merge_at_end",
    "refuse_test_monitors",
]


CLASSIFIER = "lightning_peft.ImageClassifier"


REGRESSOR = "lightning_peft.ImageRegressor"


TEXT_CLASSIFIER = "lightning_peft.TextClassifier"


REGRESSORS: Mapping[str, str] = {
    CLASSIFIER: REGRESSOR,
    TEXT_CLASSIFIER: "lightning_peft.TextRegressor",
}
"""The regressor in place of each classifier."""


LANGUAGE: Mapping[str, str] = {
    "lightning_peft.CausalLM": "language",
    "lightning_peft.PreferenceModule": "preference",
    "lightning_peft.Seq2SeqLM": "seq2seq",
}
"""The modules for language, and the task of each."""


OF_ONE_TASK: Mapping[str, str] = {
    **LANGUAGE,
    "lightning_peft.TokenClassifier": "token_classification",
}
"""The modules that serve one task only."""


WATCHED = {"language": "min", "token_classification": "max", "seq2seq": "max", "regression": "min"}
"""The tasks whose main metric takes the place of the accuracy, and what is better."""


DEFAULT = f"val/{MAIN['multiclass']}"


def fit_to_task(cfg: DictConfig, task: str) -> None:
    """Change the config to fit the task of the data; for classes it stays as it is.

    For regression ``lightning_peft.ImageClassifier`` becomes ``ImageRegressor`` and
    ``TextClassifier`` becomes ``TextRegressor``; otherwise both get the task as an argument, and a
    module of the user's own is left alone. Callbacks that monitor ``val/accuracy`` (the default)
    monitor the main metric of the task: ``val/rmse`` and ``val/perplexity``, of which lower is
    better, ``val/f1`` of entities, ``val/rougeL``.

    Args:
        cfg: The composed config of a job.
        task: The task of the data.

    Raises:
        ConfigError: If the model has settings that make no sense for regression, or is not for
            this task.
    """
    target = cfg.model.get("_target_")
    wanted = OF_ONE_TASK.get(str(target))
    if task in WATCHED:
        _watch(cfg, f"val/{MAIN[task]}", WATCHED[task])
    if task in OF_ONE_TASK.values() or wanted is not None:
        if wanted != task and (wanted or target in (CLASSIFIER, TEXT_CLASSIFIER)):
            raise ConfigError([_of_another_task(str(target), task)])
        return
    if task == "multiclass":
        return
    if target in (CLASSIFIER, TEXT_CLASSIFIER):
        with open_dict(cfg.model):
            if task == "regression":
                _to_regressor(cfg.model)
            elif "task" not in cfg.model:
                cfg.model.task = task


def _watch(cfg: DictConfig, watched: str, mode: str) -> None:
    """Let callbacks that monitor the default metric monitor another one."""
    for node in (cfg.callbacks or {}).values():
        if OmegaConf.is_dict(node) and node.get("monitor") == DEFAULT:
            node.monitor = watched
            if "mode" in node:
                node.mode = mode
        if OmegaConf.is_dict(node) and str(node.get("_target_")).endswith("StepProgress"):
            with open_dict(node):
                node.setdefault("monitor", watched)


def _of_another_task(target: str, task: str) -> str:
    choices = {"language": "causal_lm", "preference": "preference",
               "token_classification": "token_classifier", "seq2seq": "seq2seq"}  # fmt: skip
    told = {
        "language": "examples for a language model (messages, prompt and completion, or text)",
        "preference": "pairs of answers (prompt, chosen, rejected)",
        "token_classification": "words with a tag for each",
        "seq2seq": "texts with targets",
    }
    got = told.get(task, f"labels (the task '{task}')")
    advice = f"model={choices[task]}" if task in choices else "a classifier, or other data"
    return f"model: expected one for this data, which has {got}, got {target}. Choose {advice}."


def _to_regressor(node: DictConfig) -> None:
    """Remove settings that only a classifier takes, if they are at their defaults."""
    target = str(node["_target_"])
    both = (REGRESSORS[target], target)
    ours, theirs = (inspect.signature(locate(t)).parameters for t in both)
    plain: Any = OmegaConf.to_container(node, resolve=True)
    wrong = []
    for name, value in plain.items():
        if name.startswith("_") or name in ours:
            continue
        default = theirs[name].default if name in theirs else None
        if value != default and value is not None:
            wrong.append(
                f"model.{name}: expected a setting for regression, since the labels of this data "
                "are numbers, got one for classification. Leave it out."
            )
        del node[name]
    if wrong:
        raise ConfigError(wrong)
    node["_target_"] = REGRESSORS[target]


def refuse_test_monitors(callbacks: Any) -> None:
    """Refuse callbacks that choose a checkpoint or a stop by a metric of the test set.

    Args:
        callbacks: The part of the config, as plain types or not.

    Raises:
        ConfigError: If there are any; the message names all of them.
    """
    wrong = []
    for name, node in (callbacks or {}).items():
        monitor = node.get("monitor") if isinstance(node, Mapping | DictConfig) else None
        if isinstance(monitor, str) and is_test(monitor):
            wrong.append(
                f"callbacks.{name}.monitor: '{monitor}' is a metric of the test set, which must "
                f"choose nothing. Monitor 'val/{monitor.partition('/')[2]}'."
            )
    if wrong:
        raise ConfigError(wrong)


def refuse_merge_at_end(callbacks: Any) -> None:
    """Refuse a run whose adapter would be gone before it is tested and saved.

    Args:
        callbacks: The part of the config, as plain types or not.

    Raises:
        ConfigError: If a callback asks for it.
    """
    wrong = [
        f"callbacks.{name}.merge_at_end: a run tests its best checkpoint and saves the adapter "
        "after the training, which needs it beside the weights. Take the merged weights with "
        "lightning-peft export, or from callbacks.peft.checkpoints=merged."
        for name, node in (callbacks or {}).items()
        if isinstance(node, Mapping | DictConfig) and node.get("merge_at_end")
    ]
    if wrong:
        raise ConfigError(wrong)


def check_objective(cfg: Any, sweeper: Mapping[str, Any] | None) -> str | None:
    """Refuse a search that would choose on the test set.

    Args:
        cfg: The config of a job.
        sweeper: The config of Hydra's sweeper in a sweep, else ``None``.

    Returns:
        A warning, or ``None``.

    Raises:
        ConfigError: If a sweeper that learns from its jobs would get a metric of the test set
            without ``allow_test_objective=true``.
    """
    names = names_of(cfg.get("objective"))
    learns = sweeper is not None and ("n_trials" in sweeper or "direction" in sweeper)
    tested = [name for name in names if is_test(name)]
    if tested and learns and not cfg.get("allow_test_objective"):
        raise ConfigError([of_the_test_set(name) for name in tested])
    if tested:
        return (
            f"objective={tested[0]} is a metric of the test set: it may be reported, but a setting "
            "that is chosen by it has no unbiased test score"
        )
    directions = directions_of((sweeper or {}).get("direction")) if learns else ()
    for name, direction in zip(names, directions, strict=False):
        if direction != better(name):
            return f"the sweeper would {direction} {name}, but it should {better(name)} it"
    return None


def of_the_test_set(name: str) -> str:
    """Return the error for a search that chooses by a metric of the test set."""
    return (
        f"objective: '{name}' is a metric of the test set, and this sweeper chooses by it: the "
        f"score of its best setting would be too good. Use 'val/{name.partition('/')[2]}'; "
        "allow_test_objective=true allows a search on the test set."
    )
