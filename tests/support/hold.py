"""A process that takes a directory when it reads a line, and leaves it when it reads another.

    python -m tests.support.hold DIRECTORY

The line ``fork`` makes a second one, which only waits.
"""

import os
import sys
from pathlib import Path

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.runs.occupied import occupy, vacate

if __name__ == "__main__":
    sys.stdin.readline()
    try:
        occupy(Path(sys.argv[1]), "hydra.sweep.dir")
        print("taken", flush=True)
        if sys.stdin.readline() == "fork\n" and os.fork() == 0:
            vacate()
            print("forked", flush=True)
        sys.stdin.readline()
        vacate()
    except ConfigError as error:
        print(error, flush=True)
