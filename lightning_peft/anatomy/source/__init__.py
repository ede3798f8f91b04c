"""What a module's forward reads and calls, told from its source without running it.

`values` says what can be known of a value and finds the functions, `reader` follows them.
"""

from __future__ import annotations

from lightning_peft.anatomy.source.reader import Reader

__all__ = ["Reader"]
