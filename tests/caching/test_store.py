import os
import time

import pytest
import torch

from lightning_peft.caching import FeatureStore

KEYS = [bytes([i]) * 16 for i in range(6)]
ROWS = torch.arange(24.0).reshape(6, 2, 2)


@pytest.mark.parametrize("on_disk", [False, True])
def test_rows_come_back_by_key(on_disk, tmp_path):
    store = FeatureStore(10_000, tmp_path if on_disk else None)
    store.put(KEYS[:4], [ROWS[:4], ROWS[:4].long()], "f")
    store.put([KEYS[4], KEYS[1], KEYS[4]], [ROWS[[4, 1, 4]], ROWS[[4, 1, 4]].long()], "f")
    floats, longs = store.take([KEYS[4], KEYS[0], KEYS[3]])
    assert torch.equal(floats, ROWS[[4, 0, 3]])
    assert torch.equal(longs, ROWS[[4, 0, 3]].long())
    assert (len(store), KEYS[4] in store, KEYS[5] in store) == (5, True, False)
    assert store.nbytes == 5 * 4 * (4 + 8)
    with pytest.raises(KeyError, match="x05"):
        store.take([KEYS[5]])
    store.clear()
    assert (len(store), store.nbytes) == (0, 0)


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_has_no_room_is_left_out(on_disk, tmp_path):
    store = FeatureStore(4 * 16, tmp_path if on_disk else None)
    store.put(KEYS[:3], [ROWS[:3]], "f")
    assert not store.full
    store.put(KEYS[3:], [ROWS[3:]], "f")
    assert store.full
    assert len(store) == 3


def test_the_limit_of_a_directory_is_of_all_its_files(tmp_path):
    FeatureStore(1000, tmp_path).put(KEYS[:3], [ROWS[:3]], "f")
    (file,) = tmp_path.iterdir()
    room = file.stat().st_size
    for limit, count in ((room + 40, 0), (room + 48, 3)):
        store = FeatureStore(limit, tmp_path)
        store.put(KEYS[3:], [ROWS[3:]], "g")
        assert (len(store), store.full) == (count, count == 0)


def test_another_process_finds_what_was_written_for_its_prefix(tmp_path):
    mine, other = FeatureStore(1000, tmp_path), FeatureStore(1000, tmp_path)
    other.open("f")
    mine.put(KEYS[:2], [ROWS[:2]], "f")
    mine.put(KEYS[2:3], [ROWS[2:3]], "g")
    assert KEYS[0] not in other
    other.refresh()
    assert [key in other for key in KEYS[:3]] == [True, True, False]
    assert torch.equal(other.take(KEYS[1::-1])[0], ROWS[[1, 0]])
    assert not list(tmp_path.glob(".*"))


def test_files_that_are_broken_are_named_and_passed_over(tmp_path):
    store = FeatureStore(1000, tmp_path)
    store.put(KEYS[:2], [ROWS[:2]], "f")
    (whole,) = tmp_path.glob("*.safetensors")
    (tmp_path / "f-cut.safetensors").write_bytes(whole.read_bytes()[:-8])
    (tmp_path / "f-empty.safetensors").touch()
    other = FeatureStore(1000, tmp_path)
    other.open("f")
    assert len(other) == 2
    assert set(other.unreadable) == {"f-cut.safetensors", "f-empty.safetensors"}


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path):
    old, new = (tmp_path / f".{digit * 12}.a-b.safetensors" for digit in "12")
    for path in (old, new):
        path.write_text("half")
    os.utime(old, (time.time() - 90_000,) * 2)
    store = FeatureStore(1000, tmp_path)
    store.open("a")
    assert (len(store), store.unreadable) == (0, {})
    assert list(tmp_path.iterdir()) == [new]  # another process may be writing it
