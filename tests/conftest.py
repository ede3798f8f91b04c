"""What holds for all tests."""

import os

import torch

from tests.support import any_processor

if os.environ.get("ANY_PROCESSOR"):
    any_processor.install()

# The first backward decides whether this process may fork: after a fake tensor has pretended that
# there is a GPU (torch.compile and exports do), it starts threads for it, and every test of several
# ranks behind it in the same process would fail.
torch.zeros((), requires_grad=True).backward()

# a forked process has no threads but its first, and waits for ever for those of its parent's pool
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
