"""What runs a sweep that was extended: Hydra's own sweeper, its jobs in another order.

Hydra looks for sweepers in this package alone, and imports every file of it in every Hydra
application of the environment, so nothing heavy is imported here.
"""

from collections.abc import Sequence
from typing import Any, Optional

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class OrderedSweeper(BasicSweeper):
    """Hydra's basic sweeper, whose jobs have the numbers that they had before.

    Args:
        order: The place that each job has among the combinations of the values, job by job.
        max_batch_size: As Hydra has it.
        params: As Hydra has it.
    """

    def __init__(
        self,
        order: Sequence[int],
        max_batch_size: Optional[int] = None,  # noqa: UP045  OmegaConf reads it
        params: dict[str, str] | None = None,
    ) -> None:
        super().__init__(max_batch_size, params)
        self.order = [int(place) for place in order]

    def split_arguments(  # type: ignore[override]  # Hydra calls it on the instance
        self, overrides: list[Any], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """Put the jobs in order, and divide them into batches."""
        ((*jobs,),) = BasicSweeper.split_arguments(overrides, None)
        ordered = [jobs[place] for place in self.order]
        return [list(part) for part in self.split_overrides_to_chunks(ordered, max_batch_size)]
