"""Find the configs: next to the code in a wheel, at the root of a checkout."""

from __future__ import annotations

from pathlib import Path

__all__ = ["conf_dir", "no_directory"]

PACKAGE = Path(__file__).resolve().parents[2]


def conf_dir(package: Path = PACKAGE) -> Path:
    """Return the directory of the Hydra configs.

    Args:
        package: The directory of the installed package.

    Returns:
        ``lightning_peft/conf`` of an installed wheel, or ``conf`` of the checkout.

    Raises:
        FileNotFoundError: If the installation lacks them.
    """
    candidates = (package / "conf", package.parent / "conf")
    for candidate in candidates:
        if (candidate / "config.yaml").is_file():
            return candidate
    raise FileNotFoundError(
        f"Expected config.yaml in {' or '.join(map(str, candidates))}, found none: the "
        "installation is incomplete. Reinstall with: pip install --force-reinstall --no-deps "
        "lightning-peft"
    )


def no_directory(path: Path) -> str:
    """Return why a directory cannot be created or written to: there is a file on its path.

    Args:
        path: The directory.

    Returns:
        What was expected and what is there; empty if nothing is in the way.
    """
    there = next((part for part in (path, *path.parents) if part.exists()), None)
    if there is None or there.is_dir():
        return ""
    if there == path:
        return f"expected a directory to write to, got the file {path}"
    return f"expected a directory to write to, got {path}, where {there} is a file"
