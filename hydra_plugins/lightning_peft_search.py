"""``hydra/sweeper=search``: a search with Optuna that goes on where it was.

Hydra imports every file of this directory in every Hydra application of the environment, so nothing
heavy is imported here. The class has to be defined in this very file: Hydra looks it up by module.
"""

from typing import Any

from hydra.plugins.sweeper import Sweeper

__all__ = ["OptunaSearch"]


class OptunaSearch(Sweeper):
    """Ask Optuna what to try, and tell it what came of it.

    Args:
        **settings: As ``conf/hydra/sweeper/search.yaml`` has them; the sampler and the pruner are
            Optuna's own, instantiated.
    """

    def __init__(self, **settings: Any) -> None:
        from lightning_peft.cli.sweeps.search.sweeper import Search

        self.search = Search(**settings)

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Keep what Hydra hands over."""
        self.search.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Run the search.

        Args:
            arguments: The overrides of the sweep.
        """
        self.search.sweep(arguments)
