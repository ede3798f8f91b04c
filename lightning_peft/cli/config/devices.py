"""Find the device of a command, and test it before anything is loaded."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lightning_peft.cli.config.errors import ConfigError

if TYPE_CHECKING:
    import torch

__all__ = ["device_of"]


def device_of(name: str) -> torch.device:
    """Return a device after testing that it exists.

    Args:
        name: Such as ``"cuda:1"`` or ``"cpu"``; ``"auto"`` takes the accelerator if there is one.

    Returns:
        The device.

    Raises:
        ConfigError: If it is not a device, or this machine or this torch does not have it.
    """
    import torch

    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            [f"--device: expected a device such as cuda or cpu, got '{name}'"]
        ) from error
    try:
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch without it asserts
        why = re.split(r"\n|\. ", str(error))[0].rstrip(".")
        raise ConfigError(
            [f"--device: expected a device of this machine, such as cpu, got '{name}': {why}."]
        ) from error
    return device
