import torch

from lightning_peft.system.randomness import generator, mix_seed, seeded


def test_seeds_are_the_same_everywhere():
    # the value of hashlib.blake2b(b"(0, 1)", digest_size=8), little-endian, halved
    import hashlib

    digest = hashlib.blake2b(b"(0, 1)", digest_size=8).digest()
    assert mix_seed(0, 1) == int.from_bytes(digest, "little") // 2
    assert len({mix_seed(*keys) for keys in [(0, 1), (1, 0), (0, 1, 0), ("0", 1), (1,)]}) == 5


def test_a_block_is_seeded_and_the_state_put_back():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with seeded("a", 1):
        inside = torch.rand(4)
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(inside, torch.rand(4, generator=generator("a", 1)))
