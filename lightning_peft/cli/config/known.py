"""List the top-level keys that a config may have, which depend on the experiment."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_peft.cli.config.help import default_choices, experiment_settings, settings
from lightning_peft.cli.config.paths import conf_dir

__all__ = ["experiment_in", "known_keys"]


def known_keys(experiment: str | None) -> frozenset[str]:
    """Return the keys that an experiment knows: its own, and those of ``config.yaml``.

    Args:
        experiment: The experiment that was chosen, or ``None``.
    """
    root = conf_dir()
    own = {setting.key for name, setting in experiment_settings(root) if name == experiment}
    return frozenset({*default_choices(root), *(each.key for each in settings(root)), *own})


def experiment_in(words: Sequence[str]) -> str | None:
    """Return the experiment that overrides choose; ``None`` if they choose none."""
    chosen = [word.lstrip("+").partition("=") for word in words]
    return next((value for key, _, value in reversed(chosen) if key == "experiment"), None)
