"""What a frozen first part of a backbone gives, computed once and read back.

`PrefixCache` stands in for one backbone's forward. It finds the longest first part that is frozen
and deterministic (`search`), skips it (`splice`) and keeps what it gives (`store`) by the content
of each sample (`keys`).
"""

from __future__ import annotations

from lightning_peft.caching.cache import PrefixCache
from lightning_peft.caching.store import FeatureStore
from lightning_peft.caching.views import RepeatedViews

__all__ = ["FeatureStore", "PrefixCache", "RepeatedViews"]
