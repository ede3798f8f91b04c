"""Check the launcher of a sweep before its first job starts."""

from __future__ import annotations

from typing import Any

from lightning_peft.cli.config.errors import ConfigError

__all__ = ["check_launcher"]


def check_launcher(config: Any) -> None:
    """Refuse a launcher that would run each job several times.

    Args:
        config: The config of a sweep, its ``hydra`` part included.

    Raises:
        ConfigError: If submitit's local executor would start several tasks per job: they would be
            identical, and all would train in one directory.
    """
    launcher = config.hydra.launcher or {}
    tasks = launcher.get("tasks_per_node") or 1
    if str(launcher.get("_target_", "")).endswith(".LocalLauncher") and tasks > 1:
        raise ConfigError(
            [
                f"hydra.launcher.tasks_per_node: expected 1 with submitit_local, got {tasks}: each "
                "task would train the whole job. To give a job several ranks, set trainer.devices="
                f"{tasks} trainer.strategy=ddp."
            ]
        )
