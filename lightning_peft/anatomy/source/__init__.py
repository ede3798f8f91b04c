"""Finding what a module's forward reads and calls, from its source, without running it.

`values` evaluates expressions as far as possible and finds functions, `reader` follows them;
`mentions` tells beforehand where nothing can be found.
"""

from __future__ import annotations

from lightning_peft.anatomy.source.mentions import mentions
from lightning_peft.anatomy.source.reader import Reader

__all__ = ["Reader", "mentions"]
