"""The cache around a backbone: what it skips, what it compares, what it leaves alone."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import lightning_peft as lp
from lightning_peft.caching import PrefixCache
from tests.support.zoo import HEADS, ZOO, build, example_input, output_of


def counted(module):
    """Count the calls of a module's own forward."""
    calls = []
    inner = module.forward
    module.forward = lambda *args, **kwargs: calls.append(1) or inner(*args, **kwargs)
    return calls


def still(model):
    """Switch off what is random in training mode."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("drop_prob", "attn_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
        if type(module).__name__ == "StochasticDepth":
            module.p = 0.0
    return model


@pytest.mark.parametrize("name", [name for name in ZOO if HEADS[name] and name != "mlp"])
@pytest.mark.parametrize("method", ["linear_probe", "last_blocks"])
def test_every_backbone_gives_what_it_gives_without(name, method):
    model = still(build(name).train())
    lp.adapt(model, method)
    first, second = example_input(name), example_input(name, 1)
    with torch.no_grad():
        wanted = [output_of(copy.deepcopy(model), name, inputs) for inputs in (first, second)]
    said = []
    with PrefixCache(model, say=said.append) as cache:
        got = [output_of(model, name, inputs) for inputs in (first, second, first, first, second)]
    assert cache.count.cached == 2, said
    # BatchNorm of the last blocks learns its statistics, which do not touch a training output
    for output, other in zip(got, [*wanted, wanted[0], *wanted], strict=True):
        assert torch.equal(output, other)


READ = [
    ("lora", "tv_vit", "'encoder.layers.encoder_layer_1'"),  # nn.MultiheadAttention
    ("dora", "eva", "'blocks.1'"),  # its attention reads qkv.weight
    ("lora_qv", "eva", "'blocks.1'"),
]


@pytest.mark.parametrize(("method", "name", "end"), READ)
def test_features_end_before_a_weight_that_is_read_with_its_update(method, name, end):
    model = still(build(name).train())
    adaptation = lp.adapt(model, lp.create_method(method, rank=2, layers="last:1"))
    x, said = example_input(name), []

    def move():
        with torch.no_grad():
            for parameter in adaptation.trained_parameters():
                parameter.add_(0.1)
            return copy.deepcopy(model)(x)

    with PrefixCache(model, say=said.append) as cache:
        for _ in range(3):
            wanted = move()  # the adapter moves, the features before it do not
            torch.testing.assert_close(model(x).detach(), wanted, rtol=1e-4, atol=1e-5)
        assert cache.count.cached == 1
    assert f"up to {end}" in said[0]
    assert "it is trained" in said[0]


class Net(nn.Module):
    """Frozen layers, then a trained one; `wiring` says how they are connected."""

    def __init__(self, wiring=lambda net, x: net.head(net.body(net.stem(x)))):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.requires_grad_(False)
        self.head.requires_grad_(True)
        self.wiring = wiring

    def forward(self, x):
        return self.wiring(self, x)


def rows(seed=0, count=4):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def test_what_was_seen_is_not_computed_again_in_any_order():
    net = Net()
    calls = counted(net.stem)
    x = rows(count=6)
    with PrefixCache(net) as cache:
        net(x)
        net(x.flip(0))  # compared once
        before = len(calls)
        order = torch.tensor([4, 0, 2, 5, 3, 1])
        output = net(x[order])
        assert len(calls) == before
        assert cache.count.cached == 1
    assert torch.allclose(output, net(x)[order], rtol=1e-6, atol=1e-6)
    assert "forward" not in net.__dict__


def test_gradients_are_those_without():
    net = Net()
    net(rows()).square().sum().backward()
    wanted = net.head.weight.grad.clone()
    with PrefixCache(net) as cache:
        for _ in range(3):
            net.zero_grad()
            net(rows()).square().sum().backward()
        assert cache.count.cached == 1
    assert torch.equal(net.head.weight.grad, wanted)


def test_a_connection_around_the_split_is_found():
    def wiring(net, x):
        early = net.stem(x)
        return net.head(net.body(early)) + early[:, :2]

    said = []
    with PrefixCache(Net(wiring), say=said.append) as cache:
        cache.backbone(rows())
    # the body alone could be skipped if the stem ran, but nothing before it could
    assert "reads more from the first part" in said[0]
    assert not cache.count.batches


def test_a_part_that_mixes_the_samples_of_a_batch_is_found():
    def wiring(net, x):
        x = net.stem(x)
        return net.head(net.body(x - x.mean(0)))

    said = []
    with PrefixCache(Net(wiring), say=said.append) as cache:
        cache.backbone(rows())
    assert "depend on the other samples of its batch" in said[0]


def test_a_layer_that_computes_otherwise_while_it_is_watched_is_no_reason_against():
    """As fast adapters do, which step aside for hooks and then differ by rounding."""

    class Shy(nn.Linear):
        def __init__(self):
            super().__init__(4, 2)
            self.inside = nn.Identity()

        def forward(self, x):
            exact = super().forward(self.inside(x))
            return exact * (1 + 2**-20) if self.inside._forward_pre_hooks else exact

    net = Net()
    net.head = Shy()
    said = []
    with PrefixCache(net, say=said.append) as cache:
        outputs = [net(rows()) for _ in range(3)]
    assert cache.count.cached == 1, said
    assert torch.equal(outputs[2], Net.forward(net, rows()))


def test_checkpointing_by_hand_is_found():
    def wiring(net, x):
        return checkpoint(lambda y: net.head(net.body(y)), net.stem(x), use_reentrant=False)

    said = []
    with PrefixCache(Net(wiring), say=said.append) as cache:
        cache.backbone(rows())
    assert "run again in the backward pass" in said[0]


def test_a_hook_of_the_user_inside_sees_what_it_saw():
    seen = []
    net = Net()
    net.stem.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    with PrefixCache(net) as cache:
        for _ in range(4):
            net(rows())
        assert cache.count.cached == 2
    last = seen[-1]
    assert torch.equal(last, net.stem(rows()))


def test_what_is_trained_may_change():
    net = Net()
    said = []
    with PrefixCache(net, say=said.append) as cache:
        for _ in range(3):
            net(rows())
        net.body.requires_grad_(True)
        for _ in range(3):
            with torch.no_grad():
                net.body.weight.mul_(2)
            assert torch.equal(net(rows()), Net.forward(net, rows()))
        assert cache.where == "up to 'body'"
    assert "something else is trained now" in said[1]


def test_an_input_with_a_gradient_runs_whole():
    net = Net()
    x = rows().requires_grad_(True)
    with PrefixCache(net) as cache:
        for _ in range(3):
            net(x).sum().backward()
        assert cache.count.batches == 0
    assert x.grad is not None


def test_random_numbers_and_statistics_move_as_without():
    def run(cached):
        torch.manual_seed(1)
        net = Net(lambda net, x: net.head(net.drop(net.norm(net.body(net.stem(x))))))
        net.norm, net.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)
        net.train()
        cache = PrefixCache(net)
        if cached:
            cache.install()
        outputs = [net(rows()) for _ in range(4)]
        outputs[-1].sum().backward()
        assert cache.count.cached == (2 if cached else 0)
        return [*outputs, net.norm.running_mean, torch.rand(1)]

    for plain, cached in zip(run(False), run(True), strict=True):
        assert torch.equal(plain, cached)


@pytest.mark.parametrize("make", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_run_whole(make):
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    with PrefixCache(net) as cache:
        for _ in range(3):
            net(rows())
        other = make(net)
        count = cache.count.batches
        with torch.no_grad():
            other[0].weight.zero_()
        assert torch.equal(other(rows()), other[1](other[0](rows())))
        assert cache.count.batches == count


def test_an_error_in_the_middle_leaves_everything_in_place():
    net = Net()
    with PrefixCache(net) as cache:
        for _ in range(3):
            net(rows())
        inner = net.head.forward
        net.head.forward = lambda x: 1 / 0
        with pytest.raises(ZeroDivisionError, match="division by zero"):
            net(rows())
        net.head.forward = inner
        assert "forward" not in net.stem.__dict__
        assert not net.head._forward_pre_hooks
        net(rows())
        assert cache.off is None


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:FutureWarning")
def test_compiled_and_scripted_backbones_are_left_alone():
    cache = PrefixCache(nn.Sequential(torch.jit.trace(nn.Linear(4, 4), rows()), nn.Linear(4, 2)))
    cache.install()
    assert "TorchScript" in cache.off
    net = Net()
    net.body.compile()
    with PrefixCache(net) as cache:
        assert "compiled" in cache.off


def test_a_second_cache_is_refused():
    net = Net()
    with PrefixCache(net), pytest.raises(ValueError, match="already has a feature cache"):
        PrefixCache(net).install()


def test_batches_of_every_shape_are_compared_first():
    net = Net()
    with PrefixCache(net) as cache:
        net(rows())
        net(rows()[:3])  # the samples are known, this shape is not
        assert cache.count.cached == 0
        net(rows()[:3])
        net(rows()[:3])
        assert cache.count.cached == 1
