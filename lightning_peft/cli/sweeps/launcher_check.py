"""Check the launcher of a sweep before its first job starts."""

from __future__ import annotations

import os
from typing import Any

from lightning_peft.cli.config.errors import ConfigError

__all__ = ["check_launcher"]


def check_launcher(config: Any) -> None:
    """Refuse a launcher that would run each job several times.

    Args:
        config: The config of a sweep, its ``hydra`` part included.

    Raises:
        ConfigError: If submitit's local executor would start several tasks per job: they would be
            identical, and all would train in one directory. Or if torchrun runs the sweep in
            several ranks.
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
    ranks = int(os.environ.get("WORLD_SIZE") or 1) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if ranks > 1:
        raise ConfigError(
            [
                f"-m: expected one process that runs the sweep, got {ranks} ranks of torchrun, "
                "whose jobs would meet at the addresses of the job before, and whose searches "
                "would each propose trials of their own. Start it without torchrun, with "
                f"trainer.devices={ranks} trainer.strategy=ddp: each job then starts its ranks."
            ]
        )
