"""Mount the configs of this package in other Hydra applications, under one prefix.

On the search path as they are, they would add groups such as ``model`` and ``data`` to every Hydra
application of the environment. Mounted, ``conf/method/lora.yaml`` is ``lightning_peft/method/lora``
there, and nothing else is visible.
"""

from __future__ import annotations

import os

from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult

from lightning_peft.cli.config.conf_source import ConfSource
from lightning_peft.cli.config.paths import conf_dir
from lightning_peft.cli.config.structured import structured

__all__ = ["GROUPS", "MountedConfigSource"]

ROOT = "lightning_peft"

GROUPS = ("method", "schedule")
"""The groups that are useful outside of this package's own application."""


class MountedConfigSource(ConfSource):
    """Serves ``conf/`` of this package below ``lightning_peft/``."""

    def __init__(self, provider: str, path: str) -> None:
        super().__init__(provider, path)
        self.path = str(conf_dir())

    @staticmethod
    def scheme() -> str:
        """Return the prefix of a search path of this kind."""
        return "lightning-peft"

    def available(self) -> bool:
        """Return ``True``: the configs come with the package."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Whether a path is the prefix or a group below it."""
        inner = _inner(config_path)
        return config_path.strip("/") == "" or inner in ("", *GROUPS)

    def is_config(self, config_path: str) -> bool:
        """Whether a path is a choice of a group below the prefix."""
        inner = _inner(config_path)
        return _group(inner) in GROUPS and super().is_config(inner or "")

    def load_config(self, config_path: str) -> ConfigResult:
        """Read the config of a choice.

        Raises:
            ConfigLoadError: If it is none of this package's.
        """
        inner = _inner(config_path)
        if inner is None:
            raise ConfigLoadError(f"Config not found : {config_path}")
        found = super().load_config(inner)
        found.config = structured(found.config, _group(inner))
        return found

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return what is in a group."""
        groups = results_filter in (None, ObjectType.GROUP)
        if config_path.strip("/") == "":
            return [ROOT] if groups else []
        inner = _inner(config_path)
        if inner == "":
            return list(GROUPS) if groups else []
        if inner not in GROUPS or results_filter is ObjectType.GROUP:
            return []
        files = sorted(os.listdir(os.path.join(self.path, inner)))
        return [name.removesuffix(".yaml") for name in files if name.endswith(".yaml")]


def _inner(config_path: str) -> str | None:
    """Return a path without the prefix; ``None`` if it is not below the prefix."""
    head, _, rest = config_path.strip("/").partition("/")
    return rest if head == ROOT else None


def _group(inner: str | None) -> str:
    return (inner or "").rpartition("/")[0]
