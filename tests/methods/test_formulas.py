"""Own methods against their papers' formulas, written out by hand on a timm ViT."""

import copy
import pickle

import pytest
import torch
from scipy import stats
from torch.nn import functional as F

import lightning_peft as lp
from tests.support.zoo import build, example_input


def moved(method, **settings):
    model = build("vit")
    pristine = copy.deepcopy(model)
    adaptation = lp.adapt(model, method, **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in adaptation.adapter_names():
            parameter = model.get_parameter(name)
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval(), pristine.eval()


def embedded(model, images):
    x = model.patch_embed(images)
    return model.norm_pre(model._pos_embed(x))


def finished(model, x):
    return model.forward_head(model.norm(x))


def same(model, images, expected):
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_vpt_deep_gives_each_block_its_own_prompt():
    model, plain = moved("vpt_deep", prompt_length=3)
    images = example_input("vit")
    x = embedded(plain, images)
    for number, block in enumerate(plain.blocks):
        prompt = model.blocks[number].adapter_vpt_deep.prompt.expand(len(x), -1, -1)
        joined = torch.cat([x[:, :1], prompt, x[:, 1:]], 1)  # where the paper puts it
        out = block(joined)
        x = torch.cat([out[:, :1], out[:, 4:]], 1)
    same(model, images, finished(plain, x))


@torch.no_grad()
def test_vpt_shallow_keeps_its_prompt_through_all_blocks():
    model, plain = moved("vpt_shallow", prompt_length=3)
    images = example_input("vit")
    x = embedded(plain, images)
    prompt = model.blocks[0].adapter_vpt_shallow.prompt.expand(len(x), -1, -1)
    x = torch.cat([x[:, :1], prompt, x[:, 1:]], 1)
    x = plain.blocks(x)
    same(model, images, finished(plain, torch.cat([x[:, :1], x[:, 4:]], 1)))


def test_adaptformer_starts_with_kaimings_normal_distribution():
    """He et al., 2015: a variance of 2 / fan_in, here of 128 x 32 x 2 draws."""
    model = build("vit")
    lp.adapt(model, "adaptformer", bottleneck=128)
    parts = [block.adapter_adaptformer.bottleneck for block in model.blocks]
    downs = torch.cat([part.down.weight.flatten() for part in parts])
    features = parts[0].down.in_features
    assert stats.kstest(downs.detach() / (2 / features) ** 0.5, "norm").pvalue > 0.01
    assert not any(part.up.weight.any() for part in parts)


@torch.no_grad()
def test_adaptformer_is_beside_the_mlp():
    model, plain = moved("adaptformer", bottleneck=4)
    images = example_input("vit")
    x = embedded(plain, images)
    for number, block in enumerate(plain.blocks):
        part = model.blocks[number].adapter_adaptformer.bottleneck
        x = x + block.attn(block.norm1(x))
        hidden = F.relu(x @ part.down.weight.T + part.down.bias)
        x = x + block.mlp(block.norm2(x)) + 0.1 * (hidden @ part.up.weight.T + part.up.bias)
    same(model, images, finished(plain, x))


@torch.no_grad()
@pytest.mark.parametrize("method", ["houlsby", "pfeiffer"])
def test_serial_adapters_come_before_the_residual_sum(method):
    model, plain = moved(method, bottleneck=4)
    images = example_input("vit")

    def behind(host, z):
        part = getattr(host, f"adapter_{method}", None)
        return z if part is None else z + part.bottleneck(z)

    x = embedded(plain, images)
    for number, block in enumerate(plain.blocks):
        mine = model.blocks[number]
        x = x + behind(mine.attn.proj, block.attn(block.norm1(x)))
        x = x + behind(mine.mlp.fc2, block.mlp(block.norm2(x)))
    same(model, images, finished(plain, x))


@torch.no_grad()
def test_adapter_plus_comes_behind_the_block():
    model, plain = moved("adapter_plus", bottleneck=4)
    images = example_input("vit")
    x = embedded(plain, images)
    for number, block in enumerate(plain.blocks):
        part = model.blocks[number].adapter_adapter_plus
        x = block(x)
        hidden = F.gelu(x @ part.bottleneck.down.weight.T + part.bottleneck.down.bias)
        change = hidden @ part.bottleneck.up.weight.T + part.bottleneck.up.bias
        x = x + part.channel_scale * change
    same(model, images, finished(plain, x))


@torch.no_grad()
def test_convpass_convolves_the_patches_as_an_image_and_the_class_token_alone():
    model, plain = moved("convpass", bottleneck=4, scale=0.5)
    images = example_input("vit")
    rows, columns = plain.patch_embed.grid_size

    def bypass(part, x):
        hidden = F.linear(x, part.down.weight, part.down.bias)
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        batch, _, width = hidden.shape
        image = hidden[:, 1:].reshape(batch, rows, columns, width).permute(0, 3, 1, 2)
        image = F.conv2d(image, part.conv.weight, part.conv.bias, padding=1)
        special = hidden[:, :1] @ part.conv.weight[:, :, 1, 1].T + part.conv.bias
        out = torch.cat([special, image.permute(0, 2, 3, 1).reshape(batch, -1, width)], 1)
        out = out * torch.sigmoid(1.702 * out)
        return 0.5 * F.linear(out, part.up.weight, part.up.bias)

    x = embedded(plain, images)
    for number, block in enumerate(plain.blocks):
        mine = model.blocks[number]
        given = block.norm1(x)
        x = x + block.attn(given) + bypass(mine.attn.proj.adapter_convpass, given)
        given = block.norm2(x)
        x = x + block.mlp(given) + bypass(mine.mlp.fc2.adapter_convpass, given)
    same(model, images, finished(plain, x))


@torch.no_grad()
def test_repadapter_is_a_grouped_linear_map_before_the_layers():
    model, plain = moved("repadapter", bottleneck=4, groups=2, scale=0.5)
    images = example_input("vit")

    def before(part, x):
        hidden = F.linear(x, part.down.weight, part.down.bias)
        weight = part.up_weight.flatten(0, 1).unsqueeze(-1)  # a grouped 1x1 convolution
        out = F.conv1d(hidden.transpose(1, 2), weight, part.up_bias, groups=2)
        return x + 0.5 * out.transpose(1, 2)

    x = embedded(plain, images)
    for number, block in enumerate(plain.blocks):
        mine = model.blocks[number]
        x = x + block.attn(before(mine.attn.qkv.adapter_repadapter, block.norm1(x)))
        x = x + block.mlp(before(mine.mlp.fc1.adapter_repadapter, block.norm2(x)))
    same(model, images, finished(plain, x))


@torch.no_grad()
@pytest.mark.parametrize("method", ["fact_tt", "fact_tk"])
def test_fact_is_one_tensor_for_all_weights(method):
    model, plain = moved(method, rank=3, scale=0.5)
    images = example_input("vit")
    shared = getattr(model, f"adapter_{method}")
    u, v = shared.u.weight, shared.v.weight
    for number, block in enumerate(plain.blocks):
        for place in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            site = getattr(model.blocks[number].get_submodule(place), f"adapter_{method}")
            host = block.get_submodule(place)
            if method == "fact_tt":
                inner = list(site.inner)
            else:
                inner = [
                    (shared.core * p).sum(-1).T for p in shared.p[site.numbers[0] : site.numbers[1]]
                ]
            updates = [0.5 * v @ matrix @ u for matrix in inner]
            host.weight += torch.cat(updates, 1 if place == "mlp.fc2" else 0)
    same(model, images, plain(images))


@torch.no_grad()
def test_lora_qv_leaves_the_keys_alone():
    model, plain = moved("lora_qv", rank=2, alpha=6)
    width = plain.embed_dim
    for number, block in enumerate(plain.blocks):
        part = model.blocks[number].attn.qkv.adapter_lora_qv
        block.attn.qkv.weight[:width] += 3 * part.b[0] @ part.a[0]
        block.attn.qkv.weight[2 * width :] += 3 * part.b[1] @ part.a[1]
    same(model, example_input("vit"), plain(example_input("vit")))


@torch.no_grad()
def test_hydra_is_beside_and_behind():
    model, plain = moved("hydra", rank=2)
    eye = torch.eye(plain.embed_dim)
    for number, block in enumerate(plain.blocks):
        for place in ("attn.proj", "mlp.fc2"):
            part = model.blocks[number].get_submodule(place).adapter_hydra
            host = block.get_submodule(place)
            behind = part.behind.up.weight @ part.behind.down.weight
            beside = part.beside.up.weight @ part.beside.down.weight
            shifts = [
                branch.up.weight @ branch.down.bias + branch.up.bias
                for branch in (part.behind, part.beside)
            ]
            host.weight.copy_((eye + behind) @ host.weight + beside)
            host.bias.copy_((eye + behind) @ host.bias + sum(shifts))
    same(model, example_input("vit"), plain(example_input("vit")))


@torch.no_grad()
def test_ssf_scales_and_shifts_behind_every_layer():
    model, plain = moved("ssf")
    for name, module in plain.named_modules():
        part = getattr(model.get_submodule(name), "adapter_ssf", None)
        if part is not None:
            shape = (-1, *(1,) * (module.weight.ndim - 1))
            module.weight.copy_(module.weight * part.scale.view(shape))
            module.bias.copy_(module.bias * part.scale + part.shift)
    same(model, example_input("vit"), plain(example_input("vit")))


def test_the_backbone_of_a_ladder_keeps_no_graph():
    model = build("vit")
    lp.adapt(model, "ladder")
    graphs = []
    for block in model.blocks[:-1]:
        block.register_forward_hook(lambda m, a, output: graphs.append(output.requires_grad))
    model.blocks[-1].mlp.register_forward_hook(lambda m, a, out: graphs.append(out.requires_grad))
    assert model(example_input("vit")).requires_grad
    assert graphs == [False, False]


def test_lora_fa_leaves_its_first_matrix_alone():
    model = build("vit")
    adaptation = lp.adapt(model, "lora_fa", rank=2)
    fixed = [n for n in adaptation.adapter_names() if "lora_A" in n]
    assert fixed
    assert not set(fixed) & set(adaptation.trained_names())
    assert set(fixed) <= adaptation.state_names()


def test_adapter_plus_skips_whole_samples_in_training_only():
    model = build("vit")
    lp.adapt(model, "adapter_plus", drop_path=0.5)
    part = model.blocks[0].adapter_adapter_plus
    torch.nn.init.ones_(part.bottleneck.up.bias)
    x = torch.zeros(64, 5, 32)
    part.train()
    change = part.after(model.blocks[0], (), x).round(decimals=5)
    assert set(change.unique().tolist()) == {0.0, 2.0}
    assert all(len(sample.unique()) == 1 for sample in change)
    part.eval()
    torch.testing.assert_close(part.after(model.blocks[0], (), x), torch.ones_like(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lp.AdaptFormer(bottleneck=0), "expected bottleneck to be a whole number from 1"),
        (lambda: lp.Houlsby(activation="tanh"), "expected activation to be one of relu, gelu"),
        (lambda: lp.Houlsby(dropout=1.0, scale=0), "dropout .* got 1.0; expected scale .* got 0"),
        (lambda: lp.VPTDeep(prompt_length=1.5), "prompt_length to be a whole number .* got 1.5"),
        (lambda: lp.SSF(init_std=-1), "init_std to be 0 or positive, got -1"),
        (lambda: lp.RepAdapter(bottleneck=3), r"a multiple of groups \(2\), got 3"),
        (lambda: lp.FacTTT(rank=True), "rank to be a whole number from 1, got True"),
        (lambda: lp.LoRAQV(alpha=-1), "alpha to be positive, or None for alpha = rank, got -1"),
        (lambda: lp.ConvAdapter(reduction=0), "reduction to be a whole number from 1, got 0"),
        (lambda: lp.AdapterPlus(drop_path=2), r"drop_path to be a probability in \[0, 1\), got 2"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(lp.MethodError, match=message):
        make()


@pytest.mark.parametrize(
    ("method", "backbone", "message"),
    [
        (lp.FacTTT(rank=64), "vit", "a rank no larger than the width 32, got 64"),
        (lp.LadderSideTuning(reduction=64), "vit", "no larger than the width 32, got 64"),
        (lp.Hydra(targets="convs"), "vit", "expected linear layers, got patch_embed.proj"),
        (lp.RepAdapter(groups=3, bottleneck=3), "vit", "a multiple of 3 features"),
    ],
)
def test_settings_that_do_not_fit_the_backbone_are_refused(method, backbone, message):
    with pytest.raises(lp.MethodError, match=message):
        lp.adapt(build(backbone), method)


def test_an_injection_that_fails_half_way_leaves_no_hook():
    model = build("vit")

    class Fails(lp.Houlsby):
        def attach(self, model, sites, adapters):
            super().attach(model, sites[:2], adapters[:2])
            raise RuntimeError("half way")

    before = {name for name, _ in model.named_modules()}
    with pytest.raises(RuntimeError, match="half way"):
        lp.adapt(model, Fails())
    assert {name for name, _ in model.named_modules()} == before
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("method", ["adaptformer", "convpass", "ladder"])
def test_a_forward_that_was_interrupted_does_not_hinder_copies(method):
    model = build("vit")
    lp.adapt(model, method)

    def fails(module, args):
        raise RuntimeError("interrupted")

    handle = model.blocks[1].mlp.fc2.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="interrupted"):
        model(example_input("vit"))
    handle.remove()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(example_input("vit")), model(example_input("vit")))
