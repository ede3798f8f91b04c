"""Read the configs of this package, each file once, and complete those that name only a class.

``conf/method/lora.yaml`` names the class and a learning rate. Hydra refuses a key that is not in
the config (``method.rank=4``), so the fields of the class and their defaults are added when the
file is read; ``conf/model/auto.yaml`` gets the backbone that is chosen. A sweep composes its config
anew for each job: parsing the same files again would take a third of that.
"""

from __future__ import annotations

import os
import pickle
from typing import Any

import hydra.conf
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.config_source import ConfigResult
from omegaconf import Container, DictConfig, OmegaConf

from lightning_peft.cli.config.method_fields import fields_of
from lightning_peft.cli.config.paths import conf_dir
from lightning_peft.cli.config.proposals import AUTO, choose
from lightning_peft.cli.config.schema import is_ours

__all__ = ["ConfSource", "read_by_conf_source"]

METHOD = "method"
"""The group whose choices are completed, and the key of the method in each."""

MODEL = "model"

HYDRAS = "pkg://hydra.conf"
"""Where Hydra's own configs are on a search path."""

Stamp = tuple[int, int, int]
"""What changes with a file: its inode, its size and when it was written."""

_READ: dict[str, tuple[Stamp, bytes]] = {}
"""By source and file: what was read. Hydra changes what it is given, so it is kept as bytes."""


class ConfSource(FileConfigSource):
    """Reads ``conf/`` of this package, and its methods with the defaults of their classes."""

    @staticmethod
    def scheme() -> str:
        """Return the prefix of a search path of this kind."""
        return "lightning-peft-conf"

    def load_config(self, config_path: str) -> ConfigResult:
        """Return what a config file says; it is read if it has changed since the last time."""
        place = os.path.join(self.path, self._normalize_file_name(config_path))
        key = f"{self}, {place}"
        stamp = _stamp(place)  # before it is read: a change in between is seen the next time
        known, kept = _READ.get(key, (None, b""))
        if stamp is not None and stamp == known:
            found: ConfigResult = pickle.loads(kept)
            return found
        found = super().load_config(config_path)
        name = config_path.strip("/").removesuffix(".yaml")
        if name.startswith(f"{METHOD}/"):
            _complete(found.config)
        elif name == f"{MODEL}/{AUTO}" and isinstance(found.config, DictConfig):
            found.config.backbone = choose()[0].name
        if stamp is not None:
            _READ[key] = stamp, pickle.dumps(found)
        return found


def _stamp(place: str) -> Stamp | None:
    try:
        found = os.stat(place)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def read_by_conf_source(search_path: ConfigSearchPath) -> None:
    """Make :class:`ConfSource` read the configs of this package, wherever they are on the path.

    In an application of this package it reads those of Hydra as well.

    Args:
        search_path: The search path of an application; changed in place.
    """
    own = str(conf_dir())
    found = [
        (element, (element.path or "").removeprefix("file://"))
        for element in search_path.get_path()
    ]
    if own not in (path for _, path in found):
        return
    for element, path in found:
        if path == own:
            element.path = f"{ConfSource.scheme()}://{own}"
        elif path == HYDRAS and os.path.isdir(hydra.conf.__path__[0]):
            element.path = f"{ConfSource.scheme()}://{hydra.conf.__path__[0]}"


def _complete(config: Container) -> None:
    method = config.get(METHOD) if isinstance(config, DictConfig) else None
    if not isinstance(method, DictConfig) or not is_ours(method.get("_target_")):
        return
    written: Any = OmegaConf.to_container(method)  # where ??? is a value
    target = str(written.pop("_target_"))
    defaults = {field.name: field.default for field in fields_of(target.rpartition(".")[2])}
    config[METHOD] = {"_target_": target, **defaults, **written}
