"""Makes ``lightning_peft/method=lora`` a choice in every Hydra application of the environment."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from lightning_peft.cli.config.conf_source import ConfSource, read_by_conf_source
from lightning_peft.cli.config.mount import MountedConfigSource

__all__ = ["ConfSource", "LightningPeftSearchPath", "MountedConfigSource"]


class LightningPeftSearchPath(SearchPathPlugin):
    """Mount the configs at the end of the search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the configs of this package, below their prefix."""
        read_by_conf_source(search_path)
        search_path.append(provider="lightning-peft", path=f"{MountedConfigSource.scheme()}://conf")
