"""The errors that lightning-peft raises, and the helpers that word them.

Each message says what was expected, what came instead and what to do; each error is raised before
anything is changed.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "AdapterFileError",
    "BackboneMismatchError",
    "CheckpointError",
    "DataError",
    "DiskError",
    "ExportError",
    "MethodError",
    "MissingExtraError",
    "PEFTError",
    "ScheduleError",
    "TargetError",
    "near",
    "require",
    "shown",
    "some",
]


class PEFTError(Exception):
    """Base of every error that lightning-peft raises on purpose.

    >>> import lightning_peft as lp
    >>> issubclass(lp.MethodError, lp.PEFTError)
    True
    """


class TargetError(PEFTError, ValueError):
    """A selection of modules or layers that does not fit the model.

    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> try:
    ...     lp.adapt(net, "lora", targets="attention")
    ... except lp.TargetError:
    ...     print("refused, and nothing has changed")
    ...
    refused, and nothing has changed
    """


class MethodError(PEFTError, ValueError):
    """A method that is unknown, wrongly configured, or cannot serve this backbone.

    >>> import lightning_peft as lp
    >>> try:
    ...     lp.create_method("lroa")
    ... except lp.MethodError as error:
    ...     print("lora" in str(error))
    ...
    True
    """


class BackboneMismatchError(PEFTError, ValueError):
    """An adapter was trained on another backbone than the one that it is loaded into.

    >>> import tempfile
    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> one, other = (nn.Sequential(nn.Linear(4, n), nn.Linear(n, 2)) for n in (8, 9))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     lp.adapt(one, "lora").save(directory)
    ...     try:
    ...         lp.load_adapter(other, directory)
    ...     except lp.BackboneMismatchError:
    ...         print("refused")
    ...
    refused
    """


class AdapterFileError(PEFTError, ValueError):
    """An adapter directory that is missing, truncated, tampered with or of another format.

    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> try:
    ...     lp.load_adapter(nn.Linear(4, 2), "no/such/adapter")
    ... except lp.AdapterFileError as error:
    ...     print("refused")
    ...
    refused
    """


class CheckpointError(PEFTError, ValueError):
    """A checkpoint whose keys do not fit the adapted module.

    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> adaptation = lp.adapt(net, "lora")
    >>> try:
    ...     adaptation.load_state_dict({})
    ... except lp.CheckpointError as error:
    ...     print("missing" in str(error))
    ...
    True
    """


class ScheduleError(PEFTError, ValueError):
    """A learning-rate schedule that does not fit this run.

    >>> import lightning_peft as lp
    >>> try:
    ...     lp.WarmupCosine(warmup="half")
    ... except lp.ScheduleError:
    ...     print("refused")
    ...
    refused
    """


class DataError(PEFTError, ValueError):
    """Data that does not fit the task.

    >>> import lightning_peft as lp
    >>> try:
    ...     lp.Augment(crop=2.0)
    ... except lp.DataError:
    ...     print("refused")
    ...
    refused
    """


class DiskError(PEFTError, OSError):
    """A file that cannot be written: the disk is full, a quota is used up, or it is read-only.

    >>> import lightning_peft as lp
    >>> issubclass(lp.DiskError, OSError)
    True
    """

    def __str__(self) -> str:
        return str(self.strerror or super().__str__())


class ExportError(PEFTError, ValueError):
    """A model that cannot be written in the requested format.

    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> try:
    ...     lp.export_model(nn.Linear(4, 2), "net.onnx", "onnx")
    ... except lp.ExportError:
    ...     print("refused: a graph needs an example of its inputs")
    ...
    refused: a graph needs an example of its inputs
    """


class MissingExtraError(PEFTError, ImportError):
    """An optional dependency is not installed.

    >>> import lightning_peft as lp
    >>> issubclass(lp.MissingExtraError, ImportError)
    True
    """


def near(word: str, options: Iterable[str], *, most: int = 8) -> str:
    """Return a hint with the options that a mistyped word may have meant.

    Args:
        word: The mistyped word.
        options: The known words.
        most: The largest number of names to list.

    Returns:
        One sentence: the similar names, or the known ones if none is similar.

    >>> near("lorra", ["lora", "dora", "bitfit"])
    "Did you mean 'lora' or 'dora'?"
    >>> near("xyz", ["lora", "bitfit"])
    'Known: bitfit, lora.'
    """
    known = sorted(set(options))
    # a longer text is not a mistyped name, and comparing takes time by the square of its length
    hits = difflib.get_close_matches(word, known, n=3, cutoff=0.6) if len(word) <= 300 else []
    if hits:
        return "Did you mean " + " or ".join(f"'{hit}'" for hit in hits) + "?"
    if not known:
        return "There is nothing to choose from."
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return f"Known: {', '.join(known[:most])}{more}."


def some(names: Sequence[str], most: int = 8, separator: str = ", ") -> str:
    """Return the first of some names, and how many there are besides.

    Args:
        names: The names.
        most: The largest number of names to list.
        separator: What stands between two of them.

    >>> some(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def shown(value: object, most: int = 80) -> str:
    """Return a value for an error message, with dots for the rest of a long one.

    Args:
        value: The value, which may come from a file of anybody's.
        most: The largest number of characters.

    >>> shown("a" * 30, 20)
    "'aaaaaaaaaaaaaaa'..."
    >>> shown([1, 2], 20)
    '[1, 2]'
    >>> shown(1 << 99_999)
    'a number too long to print'
    """
    try:
        text = repr(value)
    except ValueError:  # Python prints no number of more than 4,300 digits
        return "a number too long to print"
    if len(text) <= most:
        return text
    quote = text[0] if text[0] in "\"'" else ""
    return f"{text[: most - 3 - len(quote)]}{quote}..."


def require(module: str, extra: str) -> Any:
    """Import an optional dependency, or raise an error that names the extra to install.

    Args:
        module: The module's import name, such as ``"sklearn.datasets"``.
        extra: The extra of lightning-peft that installs it.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: If the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        if missing != module.partition(".")[0]:
            raise  # installed, but something that it needs is missing: its own error says more
        raise MissingExtraError(
            f"`{missing}` is needed for this and is not installed. "
            f"Install it with: pip install 'lightning-peft[{extra}]'"
        ) from error
