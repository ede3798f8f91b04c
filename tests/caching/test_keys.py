import pytest
import torch

from lightning_peft.caching.keys import _on_device, digest, sample_keys

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_key_is_of_the_content_and_not_of_the_place(dtype):
    x = (torch.arange(24).reshape(4, 3, 2) % 7).to(dtype)
    x[3] = x[0]
    keys = sample_keys((x,), {}, b"")
    assert keys[3] == keys[0]
    assert len(set(keys)) == len({tuple(row.flatten().tolist()) for row in x})
    assert sample_keys((x.flip(0),), {}, b"") == keys[::-1]
    assert sample_keys((x.transpose(1, 2).contiguous().transpose(1, 2),), {}, b"") == keys


def test_everything_that_the_forward_is_given_counts():
    x, mask = torch.zeros(2, 3), torch.ones(2, 3)
    base = sample_keys((x,), {"mask": mask}, b"a")[0]
    others = [
        sample_keys((x,), {"mask": mask}, b"b")[0],
        sample_keys((x,), {"mask": mask * 2}, b"a")[0],
        sample_keys((x,), {"other": mask}, b"a")[0],
        sample_keys((x, True), {"mask": mask}, b"a")[0],
        sample_keys((x.double(),), {"mask": mask}, b"a")[0],
        sample_keys((x.reshape(2, 3, 1),), {"mask": mask}, b"a")[0],
        sample_keys((x, torch.ones(5)), {"mask": mask}, b"a")[0],
        sample_keys((x, torch.zeros(5)), {"mask": mask}, b"a")[0],
    ]
    assert len({base, *others}) == 9


def test_no_tensor_is_refused():
    with pytest.raises(ValueError, match="expected a batch of tensors"):
        sample_keys((1,), {}, b"")


@pytest.mark.parametrize("dtype", DTYPES[:-1], ids=str)
def test_the_hash_of_an_accelerator_tells_single_bits_apart(dtype):
    raw = torch.randint(0, 256, (1, 64), dtype=torch.uint8, generator=torch.Generator())
    flipped = raw.repeat(513, 1)
    for bit in range(512):
        flipped[bit, bit // 8] ^= 1 << (bit % 8)
    keys = _on_device(flipped.view(dtype))
    assert len(set(keys)) == 513
    assert {len(key) for key in keys} == {16}
    assert keys == _on_device(flipped.view(dtype))


def test_a_digest_depends_on_order_and_shape():
    a, b = torch.zeros(4), torch.ones(4)
    assert len({digest([a, b]), digest([b, a]), digest([a.reshape(2, 2), b])}) == 3
