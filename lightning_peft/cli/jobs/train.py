"""Run one job: build, train, measure the best checkpoint, and write the files."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from lightning_peft.cli.config.auto_rate import (
    AUTO,
    asks_for_a_search,
    found_in,
    problems_of_a_search,
    start_of,
)
from lightning_peft.cli.config.before import check_before
from lightning_peft.cli.config.check import check_targets, check_values
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.job_config import experiment_of_job, in_sweep
from lightning_peft.cli.config.known import known_keys
from lightning_peft.cli.config.objectives import names_of
from lightning_peft.cli.config.quiet import quiet
from lightning_peft.cli.config.task import (
    check_objective,
    refuse_merge_at_end,
    refuse_test_monitors,
)
from lightning_peft.cli.jobs.parts import Parts, _floats, _with_objectives, best_checkpoint, build
from lightning_peft.cli.jobs.ranks import ending_ranks
from lightning_peft.cli.jobs.trial_run import check_direction, pruning_of, told
from lightning_peft.cli.runs.log import set_aside
from lightning_peft.cli.runs.occupied import is_other_rank, this_process
from lightning_peft.cli.runs.places import is_within
from lightning_peft.cli.runs.summary import write_summary, write_text
from lightning_peft.cli.runs.trial import Trial
from lightning_peft.cli.sweeps.earlier import CONFIG, changes_since
from lightning_peft.cli.trust.recorded import problems_in
from lightning_peft.cli.trust.words import refuse, trust_of_jobs
from lightning_peft.system.atomic import remove_leftovers

if TYPE_CHECKING:
    from lightning_peft.cli.jobs.pruning import TrialPruning
    from lightning_peft.cli.jobs.resuming import Resuming
    from lightning_peft.cli.jobs.validating import Validations

__all__ = ["train"]

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> float | list[float] | None:
    """Run a job.

    Args:
        cfg: The composed config.

    Returns:
        The metric that the config names as its objective, or a list if it names several; by
        default the validation metric of the best checkpoint, and ``None`` without validation or
        on any rank but the first.

    Raises:
        ConfigError: If the config cannot be run.
    """
    searches = _begins_a_search(cfg)
    plain = check_values(cfg, known_keys(experiment_of_job()))
    if searches and (wrong := list(problems_of_a_search(plain))):
        raise ConfigError(wrong)
    check_before(plain)
    trust = trust_of_jobs()
    if trust is not None:  # the job of a sweep that somebody else may have recorded
        refuse(Path(cfg.output_dir), list(problems_in(plain, trust.own)))

    # what is heavy is imported from here on, and is no part of the time that is measured
    from lightning_peft.cli.jobs.outcome import leave_files, leave_pruned
    from lightning_peft.lightning.namespace import pl

    refuse_test_monitors(plain["callbacks"])
    refuse_merge_at_end(plain["callbacks"])
    if warning := check_objective(cfg, _sweeper()):
        log.warning(warning)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    with quiet():
        check_targets(plain)
        return _run(cfg, searches, leave_files, leave_pruned)


def _begins_a_search(cfg: DictConfig) -> bool:
    """Put a number in place of ``lr=auto``, and return whether it is only where a search begins."""
    if not asks_for_a_search(cfg):
        return False
    from hydra.core.hydra_config import HydraConfig

    directory = Path(cfg.output_dir)
    if (directory / CONFIG).is_file() and not changes_since(directory / CONFIG, cfg):
        cfg.lr = found_in(directory) or AUTO  # an earlier start of this job has found it
    if asks := asks_for_a_search(cfg):
        cfg.lr = start_of(HydraConfig.get().runtime.choices.get("method"))
    return asks


def _run(
    cfg: DictConfig,
    searches: bool,
    leave_files: Callable[..., Any],
    leave_pruned: Callable[..., Any],
) -> float | list[float] | None:
    from lightning_peft.cli.jobs.finding_rate import settle_rate
    from lightning_peft.cli.jobs.resuming import Resuming
    from lightning_peft.cli.jobs.shared_features import shared_features
    from lightning_peft.cli.jobs.start_lines import StartLines, start_lines
    from lightning_peft.cli.jobs.validating import Validations

    started = time.perf_counter()
    directory = Path(cfg.output_dir)
    _check_resume(cfg.resume)
    if not is_other_rank():
        # of an earlier start, which was killed; runs of others may be further below
        for place in (directory, directory / "checkpoints", directory / "adapter"):
            remove_leftovers(place)
    trial = Trial.of_environment()
    pruning = pruning_of(cfg, trial)
    resuming = Resuming(directory)
    validations = Validations()
    first = [] if in_sweep() else [start := StartLines()]
    more = [*shared_features(cfg), resuming, validations, *([pruning] if pruning else [])]
    parts = build(cfg, more, first, settle_rate if searches else None)
    if first:
        start.lines = tuple(start_lines(cfg, parts))
    with ending_ranks(parts.trainer):
        return _run_parts(
            cfg, parts, trial, pruning, resuming, validations, started, leave_files, leave_pruned
        )


def _run_parts(
    cfg: DictConfig,
    parts: Parts,
    trial: Trial | None,
    pruning: TrialPruning | None,
    resuming: Resuming,
    validations: Validations,
    started: float,
    leave_files: Callable[..., Any],
    leave_pruned: Callable[..., Any],
) -> float | list[float] | None:
    from lightning_peft.cli.jobs.differences import told_resumed
    from lightning_peft.cli.jobs.resuming import facts_of

    directory = Path(cfg.output_dir)
    check_direction(cfg, trial)
    resuming.facts = facts_of(parts.datamodule, parts.trainer)

    def begin() -> None:
        write_text(directory / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        # a comparison shows this run while it is under way, and if it is killed
        write_summary(directory, cfg, status="running", process=this_process())

    if parts.trainer.is_global_zero:
        if cfg.resume is None:
            begin()
        else:  # its directory keeps what is there until nothing can be refused any more
            resuming.when_it_goes_on = begin
            for line in told_resumed(cfg, resuming.facts):
                print(line, file=sys.stderr)
            if is_within(cfg.resume, directory):  # the logger would delete the log of before
                set_aside(directory)
    parts.trainer.fit(parts.module, parts.datamodule, ckpt_path=cfg.resume, weights_only=True)
    if cfg.resume is not None and parts.trainer.is_global_zero:
        begin()  # of a run that had nothing left to train, too
    fitted = time.perf_counter()
    if pruning is not None and pruning.pruned is not None:
        seconds = {"fit": fitted - started, "total": fitted - started}
        if parts.trainer.is_global_zero:
            leave_pruned(cfg, parts, pruning.pruned, seconds)
        return pruning.pruned.value
    best = best_checkpoint(parts, directory)
    metrics = _with_objectives(parts, best, names_of(cfg.objective))
    if cfg.calibrate is not None:
        module: Any = parts.module
        temperature = module.calibrate(parts.trainer, parts.datamodule, str(best.path))
        if parts.trainer.is_global_zero:
            _keep_temperature(best.path, temperature)
        parts.trainer.strategy.barrier()
    if cfg.test:
        metrics |= _floats(
            parts.trainer.test(
                parts.module,
                parts.datamodule,
                ckpt_path=str(best.path),
                verbose=False,
                weights_only=True,
            )
        )
    if not parts.trainer.is_global_zero:
        return None
    seconds = {
        "fit": fitted - started,
        "validation": validations.seconds,
        "total": time.perf_counter() - started,
    }
    return told(leave_files(cfg, parts, best, metrics, seconds))


def _check_resume(checkpoint: Any) -> None:
    """Refuse a checkpoint that is cut off or holds code, before anything is built."""
    from lightning_peft.files.checkpoints import check_checkpoint_file, check_resumable

    # a sharded one is a directory; what Lightning finds by a word, or is missing, it says itself
    path = Path(str(checkpoint))
    if checkpoint is not None and path.exists() and not path.is_dir():
        check_checkpoint_file(path)
        check_resumable(path)


def _keep_temperature(path: Path, temperature: float) -> None:
    """Write the temperature into the checkpoint, so that every copy of it has it."""
    from lightning_peft.errors import CheckpointError
    from lightning_peft.files.checkpoints import keep_hyperparameters

    try:
        keep_hyperparameters(path, temperature=temperature)
    except CheckpointError as error:  # hyperparameters of the user's own that are no plain data
        log.warning("the temperature is in serving.json and not in the checkpoint: %s", error)


def _sweeper() -> Any:
    """Return the config of Hydra's sweeper if this job belongs to a sweep."""
    from hydra.core.hydra_config import HydraConfig

    return OmegaConf.to_container(HydraConfig.get().sweeper) if in_sweep() else None
