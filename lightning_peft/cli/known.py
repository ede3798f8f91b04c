"""The top-level keys of a config that mean something, which depend on the experiment."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_peft.cli.help import default_choices, experiment_settings, settings
from lightning_peft.cli.paths import conf_dir

__all__ = ["experiment_in", "experiment_of_job", "known_keys"]


def known_keys(experiment: str | None) -> frozenset[str]:
    """List the keys that an experiment knows: its own, and those of ``config.yaml``.

    Args:
        experiment: The experiment that was chosen, or ``None``.
    """
    root = conf_dir()
    own = {setting.key for name, setting in experiment_settings(root) if name == experiment}
    return frozenset({*default_choices(root), *(each.key for each in settings(root)), *own})


def experiment_in(words: Sequence[str]) -> str | None:
    """Find the experiment that overrides choose; ``None`` where they choose none."""
    chosen = [word.lstrip("+").partition("=") for word in words]
    return next((value for key, _, value in reversed(chosen) if key == "experiment"), None)


def experiment_of_job() -> str | None:
    """Find the experiment of the job that Hydra is running; ``None`` where there is none."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return None
    choice = HydraConfig.get().runtime.choices.get("experiment")
    return None if choice is None else str(choice)
