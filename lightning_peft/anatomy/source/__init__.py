"""A small interpreter that follows the source of a module's forward without running it.

It notes whose weights the forward reads and which modules it calls. `values` is what it knows of
values, `source` finds the syntax trees, `expressions` evaluates, `reader` follows statements.
"""

from __future__ import annotations

from lightning_peft.anatomy.source.reader import Reader

__all__ = ["Reader"]
