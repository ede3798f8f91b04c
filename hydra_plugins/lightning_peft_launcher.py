"""``hydra/launcher=fresh``: every job of a sweep in a process of its own, one after the other.

Hydra imports every file of this directory in every Hydra application of the environment, so nothing
heavy is imported here. The class has to be defined in this very file: Hydra looks it up by module.
Annotations are not postponed: ``dataclasses`` would look them up in ``sys.modules``, and Hydra
enters the module there only when it is whole.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher

log = logging.getLogger(__name__)


@dataclass
class FreshConf:
    """The config of the launcher.

    Attributes:
        module: The module that is run as ``python -m``; by default the program that is running.
    """

    _target_: str = "hydra_plugins.lightning_peft_launcher.FreshLauncher"
    module: Optional[str] = None  # noqa: UP045  OmegaConf reads it


ConfigStore.instance().store(
    group="hydra/launcher", name="fresh", node=FreshConf, provider="lightning-peft"
)


class FreshLauncher(Launcher):
    """Start each job as a plain run of the same program; a job that dies leaves the others running.

    Args:
        module: As in :class:`FreshConf`.
    """

    def __init__(self, module: str | None = None) -> None:
        self.module = module

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Keep what Hydra hands over."""
        self.hydra_context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Run the jobs.

        Args:
            job_overrides: The overrides of each job.
            initial_job_idx: The number of the first.

        Returns:
            How each ended, as Hydra's ``JobReturn``.
        """
        from hydra.core.utils import configure_log, setup_globals

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return [
            self._one(list(overrides), number)
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]

    def _one(self, overrides: list[str], number: int) -> Any:
        from hydra.core.utils import JobReturn, JobStatus
        from omegaconf import open_dict, read_write

        from lightning_peft.cli.config.job_config import asked

        log.info("\t#%d : %s", number, " ".join(overrides))
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        with asked(config):  # the directory may ask for a choice
            directory = Path(config.hydra.sweep.dir, str(config.hydra.sweep.subdir)).absolute()
        with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
            config.hydra.runtime.output_dir = str(directory)
        with asked(config):
            job = JobReturn(overrides=overrides, cfg=config, hydra_cfg=config)
            job.working_dir = str(directory)
            callbacks = self.hydra_context.callbacks
            callbacks.on_job_start(config=config, task_function=None)
            try:
                job.return_value = self._run(config, directory)
                job.status = JobStatus.COMPLETED
            except Exception as error:
                job.return_value = error
                job.status = JobStatus.FAILED
            callbacks.on_job_end(config=config, job_return=job)
            return job

    def _run(self, config: Any, directory: Path) -> Any:
        from lightning_peft.cli.config.job_config import own_part
        from lightning_peft.cli.sweeps.earlier import Earlier, earlier_run
        from lightning_peft.cli.sweeps.fresh import run_fresh

        cfg = own_part(config)
        # another application keeps no record of its jobs that could be read here
        before = earlier_run(cfg) if "output_dir" in cfg and "resume" in cfg else Earlier()
        if before.summary is not None:
            return before.objective
        resume = None if before.checkpoint is None else str(before.checkpoint)
        return run_fresh(config, config.hydra, directory, self.module, resume)
