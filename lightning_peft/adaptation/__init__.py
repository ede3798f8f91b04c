"""A model together with its adapter: injection, the handle, merging, reports, serving."""

from lightning_peft.adaptation.handle import Adaptation, find_adaptation

__all__ = ["Adaptation", "find_adaptation"]
