"""Files that are written completely or not at all; the disk's errors are made by hand."""

import errno
import os
import time

import pytest
import torch

import lightning_peft as lp
from lightning_peft.system.atomic import (
    lacks_room,
    remove_leftovers,
    written_together,
    written_whole,
)


def full(number=errno.ENOSPC):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    return refuse


def test_a_file_its_content_and_its_name_reach_the_disk_in_this_order(tmp_path, monkeypatch):
    done = []
    own, rename = os.fsync, os.replace

    def flush(file):
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{file}")))
        own(file)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", lambda *names: done.append("renamed") or rename(*names))
    with written_whole(tmp_path / "new" / "a.txt") as temporary:
        temporary.write_text("a")
    assert done == [temporary.name, "renamed", "new"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (
            errno.ENOSPC,
            r"expected room for at least 4,000 bytes, got a disk with [\d,]+ bytes left",
        ),
        (errno.EDQUOT, r"expected room for at least 4,000 bytes, got a quota that is used up"),
        (errno.EFBIG, r"expected room for at least 4,000 bytes, got a limit on the size of a file"),
        (errno.EROFS, r"expected a place to write, got a disk that can only be read"),
    ],
)
def test_a_disk_that_takes_no_more_leaves_the_old_file_and_says_what_it_needed(
    number, told, tmp_path, monkeypatch
):
    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full(number))
    with (
        pytest.raises(lp.DiskError, match=rf"a\.txt: {told}.*Make room on the disk of") as caught,
        written_whole(path, needs=4_000) as temporary,
    ):
        temporary.write_text("new")
    assert (caught.value.errno, lacks_room(caught.value)) == (number, number)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_of_several_files_none_is_replaced(tmp_path, monkeypatch):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text("old")
    calls = []
    own = os.fsync

    def second(file):
        calls.append(file)
        own(file) if len(calls) < 2 else full()()

    monkeypatch.setattr(os, "fsync", second)

    def write():
        with written_together(paths) as temporaries:
            for temporary in temporaries:
                temporary.write_text("new")

    with pytest.raises(lp.DiskError, match="a and .*b: expected room for at least 6 bytes"):
        write()
    assert [path.read_text() for path in paths] == ["old", "old"]
    assert sorted(tmp_path.iterdir()) == paths


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    "write",
    [lambda path: torch.save({"a": torch.zeros(9)}, path), lambda path: None],
    ids=["torch", "another"],
)
def test_a_writer_of_another_language_that_hides_the_reason(write, tmp_path):
    def fails():
        with written_whole(tmp_path / "a.bin") as temporary:
            temporary.unlink()
            temporary.symlink_to("/dev/full")
            write(temporary)
            raise RuntimeError("iostream error")

    with pytest.raises(lp.DiskError, match=r"a\.bin: expected room"):
        fails()
    assert not list(tmp_path.iterdir())


def test_errors_of_the_writer_itself_stay_what_they_are(tmp_path):
    def fails():
        with written_whole(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fails()
    assert not list(tmp_path.iterdir())
    assert lacks_room(ValueError()) is None


def test_a_file_system_that_cannot_flush_a_directory_is_no_error(tmp_path, monkeypatch):
    own = os.open

    def refuse(path, flags, *mode):
        return full(errno.EINVAL)() if os.path.isdir(path) else own(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    with written_whole(tmp_path / "a") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "a").read_text() == "whole"


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    below = tmp_path / "checkpoints"
    below.mkdir()
    kept = [tmp_path / name for name in (".in_use", ".hydra.yaml", "a.txt", ".0123456789ab")]
    left = [tmp_path / ".0123456789ab.a.txt", below / ".ba9876543210.last.ckpt"]
    for path in (*kept, *left):
        path.write_text("")
    remove_leftovers(tmp_path, seconds=60)
    assert all(path.exists() for path in left)
    os.utime(left[0], (time.time() - 61,) * 2)
    remove_leftovers(tmp_path, seconds=60)
    assert [path.exists() for path in left] == [False, True]
    remove_leftovers(tmp_path)
    assert left[1].exists()
    remove_leftovers(below)
    assert [path.exists() for path in left] == [False, False]
    assert all(path.exists() for path in kept)
