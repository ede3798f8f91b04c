"""Writing Lightning's checkpoint files completely or not at all.

Lightning makes a checkpoint in the directory for temporary files and copies it to its place. A disk
that fills up, or a kill, during the copy leaves half a ``last.ckpt`` where a whole one was.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_peft.lightning.namespace import pl
from lightning_peft.system.atomic import written_whole

__all__ = ["WholeCheckpointIO", "write_whole_checkpoints"]

log = logging.getLogger(__name__)


class WholeCheckpointIO(pl.plugins.CheckpointIO):
    """Write each checkpoint beside its place, flush it to the disk and rename it.

    After a kill, a crash or on a full disk the old checkpoint is there or the new one, never a
    part. The ``PEFT`` callback, ``PEFTMixin`` and the command put it into their trainer; any other
    trainer takes it as a plugin, alone or inside of Lightning's asynchronous one::

        L.Trainer(plugins=[lp.WholeCheckpointIO()])
        L.Trainer(plugins=[AsyncCheckpointIO(lp.WholeCheckpointIO())])

    Addresses (``s3://...``), directories (sharded checkpoints) and the formats of other plugins are
    written by ``base`` in its own way.

    Args:
        base: What reads and removes checkpoints, and writes what is not a local file; by default
            Lightning's own.

    >>> import lightning_peft as lp
    >>> plugins = [lp.WholeCheckpointIO()]  # Trainer(plugins=plugins)
    """

    def __init__(self, base: Any = None) -> None:
        self.base = pl.plugins.TorchCheckpointIO() if base is None else base
        self._around: Any = None
        self._lost = False

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: Its content.
            path: The file.
            storage_options: Options of ``base``, which then writes it.

        Raises:
            DiskError: If the disk is full or can only be read; the old file is still there.
        """
        self._lost = True
        file = Path(path).expanduser()
        plain = storage_options is None and "://" not in str(path) and _is_lightnings(self.base)
        if not plain or file.is_dir():
            self.base.save_checkpoint(checkpoint, path, storage_options=storage_options)
        else:
            with (
                written_whole(file, _bytes_of(checkpoint)) as temporary,
                temporary.open("wb") as to,
            ):
                torch.save(checkpoint, to)
        self._lost = False

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint, as ``base`` does."""
        found: dict[str, Any] = self.base.load_checkpoint(path, *args, **kwargs)
        return found

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint, once those before it are written.

        Args:
            path: The checkpoint.
        """
        executor = getattr(self._around, "_executor", None)
        if executor is None:
            self.base.remove_checkpoint(path)
        else:  # behind the checkpoints that are waiting there, one of which replaces it
            executor.submit(self._remove_if_replaced, path)

    def teardown(self) -> None:
        """Close what ``base`` has opened."""
        self.base.teardown()

    def _remove_if_replaced(self, path: Any) -> None:
        if self._lost:
            return
        try:
            self.base.remove_checkpoint(path)
        except Exception as error:  # in a thread nobody hears it
            log.warning("cannot remove the checkpoint %s: %s", path, error)


def write_whole_checkpoints(strategy: Any) -> None:
    """Put :class:`WholeCheckpointIO` around the checkpoint IO of a trainer's strategy.

    Plugins that wrap another (asynchronous writing) keep their place outside; one that writes in
    its own way is left alone.

    Args:
        strategy: The strategy; ``None`` is left alone, and so is one that has it already.
    """
    if strategy is None:
        return
    around, io = None, strategy.checkpoint_io
    while isinstance(getattr(io, "checkpoint_io", None), pl.plugins.CheckpointIO):
        around, io = io, io.checkpoint_io
    if not isinstance(io, WholeCheckpointIO):
        if not _is_lightnings(io):
            return
        io = WholeCheckpointIO(io)
        if around is None:
            strategy.checkpoint_io = io
        else:  # it refuses to be given another one
            around._checkpoint_io = io
    io._around = around


def _is_lightnings(io: Any) -> bool:
    """Whether a checkpoint IO writes files as Lightning does."""
    own = pl.plugins.TorchCheckpointIO.save_checkpoint
    return getattr(type(io), "save_checkpoint", None) is own


def _bytes_of(checkpoint: dict[str, Any]) -> int:
    """Return the bytes of a checkpoint's tensors, which are nearly all of its file."""
    tensors = [leaf for leaf in tree_leaves(checkpoint) if isinstance(leaf, Tensor)]
    storages = [t.untyped_storage() for t in tensors if t.layout == torch.strided]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())
