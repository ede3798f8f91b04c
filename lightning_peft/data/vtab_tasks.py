"""The nineteen tasks of VTAB-1k (Zhai et al., 2019): names, groups and numbers of classes.

Names are those of the directories that the preparation script of NOAH (Zhang et al., 2022) writes;
the repositories of Convpass, FacT, SSF and RepAdapter use the same names.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

__all__ = ["GROUPS", "TASKS", "Task", "TaskName"]

TaskName = Literal[
    "cifar", "caltech101", "dtd", "oxford_flowers102", "oxford_iiit_pet", "svhn", "sun397",
    "patch_camelyon", "eurosat", "resisc45", "diabetic_retinopathy",
    "clevr_count", "clevr_dist", "dmlab", "kitti", "dsprites_loc", "dsprites_ori",
    "smallnorb_azi", "smallnorb_ele",
]  # fmt: skip

GROUPS = ("natural", "specialized", "structured")
"""The groups, whose means have equal weights in the usual average."""

_SIZES = (7, 4, 8)
_CLASSES = (100, 102, 47, 102, 37, 10, 397, 2, 10, 45, 5, 8, 6, 6, 4, 16, 16, 18, 9)


class Task(NamedTuple):
    """One task: its group and its number of classes."""

    group: str
    num_classes: int


_OF_GROUP = [group for group, size in zip(GROUPS, _SIZES, strict=True) for _ in range(size)]

TASKS: dict[str, Task] = {
    name: Task(group, classes)
    for name, group, classes in zip(get_args(TaskName), _OF_GROUP, _CLASSES, strict=True)
}
"""The tasks by name."""
