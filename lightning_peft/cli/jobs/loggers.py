"""Loggers that cannot write: they are switched off, and the training goes on without them."""

from __future__ import annotations

import logging
from typing import Any

__all__ = ["forgiving"]

log = logging.getLogger(__name__)

CALLS = ("log_hyperparams", "log_metrics", "log_graph", "save", "finalize", "after_save_checkpoint")
"""What a trainer calls of a logger."""


def forgiving(logger: Any) -> Any:
    """Switch a logger off at its first ``OSError``, with one line; its other errors stay errors.

    A disk that is full, a directory that is gone or a server that does not answer ends the log, not
    the training. Only the loggers that the command builds are made so.

    Args:
        logger: A logger of Lightning; it is changed.

    Returns:
        The logger.
    """
    state: dict[str, bool] = {}
    for name in CALLS:
        if callable(getattr(type(logger), name, None)):
            setattr(logger, name, _Call(logger, name, state))
    return logger


class _Call:
    """A method of a logger; an object and no closure, since strategies that spawn pickle it."""

    def __init__(self, logger: Any, name: str, state: dict[str, bool]) -> None:
        self.logger = logger
        self.name = name
        self.state = state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.get("off"):
            return None
        try:
            return getattr(type(self.logger), self.name)(self.logger, *args, **kwargs)
        except OSError as error:
            self.state["off"] = True
            kind = type(self.logger).__name__
            # an error of writing does not name the file
            where = "" if error.filename else f" (in {self.logger.save_dir})"
            log.warning("%s: off, and the training goes on: %s%s", kind, error, where)
            return None
