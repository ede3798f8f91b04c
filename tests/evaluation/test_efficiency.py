import copy
import itertools

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_peft.evaluation import efficiency
from lightning_peft.evaluation.efficiency import (
    FlopCounter,
    ParameterCount,
    count_flops,
    count_parameters,
    gradient_bytes,
    median,
    optimizer_state_bytes,
    predicted_optimizer_state_bytes,
    tensor_bytes,
)


def net():
    return nn.Sequential(
        nn.Linear(8, 16),
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        nn.Linear(16, 3),
    )


def train_step(model, inputs):
    model.zero_grad()
    model(inputs).square().sum().backward()


def test_parameters_are_counted_by_what_requires_a_gradient():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2).requires_grad_(False))
    count = count_parameters(model)
    assert count == ParameterCount(trainable=15, frozen=8)
    assert (count.total, count.share) == (23, 15 / 23)
    assert ParameterCount(0, 0).share == 0.0


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")  # older torch
def test_shared_meta_and_lazy_parameters():
    tied = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    tied[1].weight = tied[0].weight
    assert count_parameters(tied).total == 28
    assert count_parameters(nn.Linear(1000, 1000, device="meta")).total == 1_001_000
    assert count_parameters(nn.LazyLinear(3)).total == 0


def test_quantized_and_partitioned_parameters_count_what_they_stand_for():
    class Params4bit(nn.Parameter):
        """As bitsandbytes packs it: two values a byte."""

    packed = Params4bit(torch.zeros(50, 1, dtype=torch.uint8), requires_grad=False)
    module = nn.Module()
    module.register_parameter("weight", packed)
    assert count_parameters(module).total == 100

    partitioned = nn.Linear(1, 1, bias=False)
    partitioned.weight.ds_numel = 4096  # DeepSpeed ZeRO-3
    assert count_parameters(partitioned).total == 4096


def test_a_sharded_parameter_counts_in_full(tmp_path):
    from torch import distributed
    from torch.distributed.tensor import DeviceMesh, Shard, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        mesh = DeviceMesh("cpu", [0, 1])
        module = nn.Linear(6, 4, bias=False)
        module.weight = nn.Parameter(distribute_tensor(module.weight.detach(), mesh, [Shard(0)]))
        assert module.weight.to_local().shape == (2, 6)
        assert count_parameters(module).total == 24
        assert gradient_bytes(module.parameters()) == 96
        assert tensor_bytes(module.state_dict()) == 96
    finally:
        distributed.destroy_process_group()


def test_gradient_bytes_are_those_of_real_gradients():
    model = net().to(torch.bfloat16)
    model[0].float()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    real = sum(p.grad.numel() * p.grad.element_size() for p in model.parameters())
    assert gradient_bytes(model.parameters()) == real
    assert gradient_bytes([torch.zeros(5, dtype=torch.int8)]) == 0


def test_tensor_bytes_counts_shared_storage_once():
    weight = torch.zeros(10, 4)
    state = {"a": weight, "nested": [{"b": torch.zeros(3, dtype=torch.float64)}, weight], "c": 7}
    assert tensor_bytes(state) == 160 + 24
    assert tensor_bytes({"a": torch.empty(1000, device="meta")}) == 4000


def bytes_by_address(tensors):
    """The bytes, one by one."""
    seen = set()
    for tensor in tensors:
        for index in itertools.product(*map(range, tensor.shape)):
            first = tensor[index].data_ptr()
            seen.update(range(first, first + tensor.element_size()))
    return len(seen)


def views_of(whole):
    return {
        "rows that overlap": [whole[:4], whole[3:]],
        "rows that do not": [whole[:2], whole[3:]],
        "the whole and parts": [whole, whole.T, whole[2]],
        "columns that overlap": [whole[:, :3], whole[:, 2:]],
        "rows and columns": [whole[:, :2], whole[:, 3:], whole[1::2]],
        "expanded": [whole[0].expand(3, 5), whole[:, 0]],
        "another dtype": [whole.view(torch.int16)[:, 1:2], whole[:, :1]],
        "nothing": [whole[:0], whole[1, 2:3]],
    }


@pytest.mark.parametrize("name", views_of(torch.zeros(6, 5)))
def test_bytes_that_several_views_show_count_once(name):
    views = views_of(torch.zeros(6, 5))[name]
    assert tensor_bytes({"views": views}) == bytes_by_address(views)
    assert tensor_bytes(views_of(torch.zeros(6, 5, device="meta"))[name]) == tensor_bytes(views)


OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "adamw": (torch.optim.AdamW, {}),
    "amsgrad": (torch.optim.AdamW, {"amsgrad": True}),
    "fused": (torch.optim.AdamW, {"fused": True}),
    "foreach": (torch.optim.AdamW, {"foreach": True}),
    "adafactor": (torch.optim.Adafactor, {}),  # its state depends on shapes, its step on values
    "rmsprop": (torch.optim.RMSprop, {}),
    "adagrad": (torch.optim.Adagrad, {}),
    "nadam": (torch.optim.NAdam, {}),
}


@pytest.mark.parametrize("small", [0, 2**20], ids=["without values", "with zeros"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_predicted_optimizer_state_is_what_the_optimizer_comes_to_hold(name, small, monkeypatch):
    monkeypatch.setattr(efficiency, "_SMALL", small)
    kind, options = OPTIMIZERS[name]
    model = net()
    head = list(model[2].parameters())
    rest = [*model[0].parameters(), *model[1].parameters()]
    optimizer = kind([{"params": head}, {"params": rest, "weight_decay": 0.1}], **options)
    before = copy.deepcopy(optimizer.state_dict())
    predicted = predicted_optimizer_state_bytes(optimizer, model.parameters())
    assert str(optimizer.state_dict()) == str(before)
    train_step(model, torch.randn(2, 5, 8))
    optimizer.step()
    assert predicted == optimizer_state_bytes(optimizer)


def test_each_group_is_predicted_with_its_own_options():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    groups = [
        {"params": model[0].parameters(), "momentum": 0.9},
        {"params": model[1].parameters(), "momentum": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    assert predicted_optimizer_state_bytes(optimizer, model.parameters()) == 64
    # a parameter that is in no group is taken as one of the first
    assert predicted_optimizer_state_bytes(optimizer, nn.Linear(2, 2).parameters()) == 24


def test_a_scheduler_on_the_optimizer_does_not_see_the_prediction():
    model = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # replaces `step` on the instance
    calls = []
    optimizer.register_step_pre_hook(lambda *args: calls.append(args))
    predicted = predicted_optimizer_state_bytes(optimizer, model.parameters())
    assert predicted == 2 * 80 + 2 * 4
    assert not calls
    assert not getattr(optimizer, "_opt_called", False)


def test_the_prediction_leaves_the_random_state():
    class Noisy(torch.optim.SGD):
        def step(self, closure=None):
            torch.randn(3)
            return super().step(closure)

    model = nn.Linear(4, 4)
    before = torch.get_rng_state()
    predicted_optimizer_state_bytes(Noisy(model.parameters(), lr=0.1), model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_an_optimizer_that_cannot_be_predicted_says_so():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.LBFGS(model.parameters())  # its step needs a closure
    assert predicted_optimizer_state_bytes(optimizer, model.parameters()) is None


@pytest.mark.parametrize("mode", ["train", "inference", "autocast"])
def test_flops_agree_with_torch(mode):
    model, inputs = net().eval(), torch.randn(2, 5, 8)

    def call():
        if mode == "train":
            train_step(model, inputs)
        elif mode == "inference":
            with torch.inference_mode():
                model(inputs)
        else:
            with torch.autocast("cpu", torch.bfloat16):
                model(inputs)

    model.train(mode == "inference")  # else the encoder layer is one operation without a formula
    with FlopCounterMode(display=False) as reference:
        call()
    model.eval()
    assert count_flops(call) == reference.get_total_flops() > 0


def test_counting_changes_neither_results_nor_random_numbers():
    inputs = torch.randn(2, 5, 8)

    def run(counted):
        torch.manual_seed(0)
        model = net().train()  # with dropout
        if counted:
            count_flops(train_step, model, inputs)
        else:
            train_step(model, inputs)
        return [p.grad for p in model.parameters()], torch.rand(3)

    plain, counted = run(False), run(True)
    assert all(map(torch.equal, plain[0], counted[0]))
    assert torch.equal(plain[1], counted[1])


def test_a_compiled_module_is_counted_uncompiled_and_stays_compiled():
    calls = []

    def backend(graph, example_inputs):
        calls.append(graph)
        return graph.forward

    linear = nn.Linear(4, 3, bias=False)
    compiled = torch.compile(linear, backend=backend)
    inputs = torch.randn(2, 4)
    assert count_flops(compiled, inputs) == 48
    assert not calls
    compiled(inputs)
    assert len(calls) == 1
    assert count_flops(compiled, inputs) == 48
    compiled(inputs)
    assert len(calls) == 1


def test_operations_without_a_formula_run_as_they_are():
    with FlopCounter() as counter:
        result = torch.sort(torch.tensor([3.0, 1.0, 2.0])).values
    assert result.tolist() == [1.0, 2.0, 3.0]
    assert counter.flops == 0


def test_median():
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.5
    assert median([]) != median([])  # not a number
