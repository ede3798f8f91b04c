"""Caching the outputs of the frozen first part of a backbone, computed once for each sample.

`PrefixCache` replaces one backbone's forward. It finds the longest first part that is frozen and
deterministic (`search`), skips it (`splice`) and keeps its outputs, the features (`store`), by the
content of each sample (`keys`).
"""

from __future__ import annotations

from lightning_peft.caching.cache import PrefixCache
from lightning_peft.caching.store import FeatureStore
from lightning_peft.caching.views import RepeatedViews

__all__ = ["FeatureStore", "PrefixCache", "RepeatedViews"]
