"""Head and backbone by what the model does, in shapes of packages that are not installed here."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_peft.anatomy import anatomy
from lightning_peft.anatomy.backbone import backbone_of
from lightning_peft.errors import TargetError


class Plain(nn.Module):
    def __init__(self, **children: nn.Module):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class Block(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2)
        self.fc1, self.fc2 = nn.Linear(width, 16), nn.Linear(16, width)


class Convs(nn.Module):
    """A unit of convolutions, as decoders are made of."""

    def __init__(self, width: int = 8, blocks: int = 0) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3), nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList(Unit(width) for _ in range(blocks))


class Unit(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.up, self.conv = nn.ConvTranspose2d(width, width, 2), nn.Conv2d(width, width, 3)
        self.attention = nn.Conv2d(width, width, 1)  # a gate, as in the decoders of smp


def blocks(number: int = 3) -> nn.ModuleList:
    return nn.ModuleList(Block() for _ in range(number))


def encoder() -> nn.Module:
    return Plain(embed=nn.Linear(4, 8), blocks=blocks(), norm=nn.LayerNorm(8))


@pytest.mark.parametrize(
    "name",
    [
        "output_layer",
        "out",
        "decoder",
        "predictor",
        "proj_out",
        "fc_out",
        "to_logits",
        "klass",
        "z",
    ],
)
def test_the_last_layer_behind_the_blocks_is_the_head_whatever_its_name(name):
    model = Plain(embed=nn.Linear(4, 8), blocks=blocks(), norm=nn.LayerNorm(8))
    model.add_module(name, nn.Linear(8, 2))
    found = anatomy(model)
    assert found.head == (name,)
    assert found.how == "the layers behind the last block, in the order of definition"
    assert "order of definition" in found.doubt
    assert len(found.blocks) == 3


class OwnOrder(nn.Module):
    """The output is defined first, as in litgpt; the embedding is defined last, as in CLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.result = nn.Linear(8, 5)
        self.layers = blocks()
        self.late = nn.Linear(4, 8)

    def forward(self, x):
        x = self.late(x)
        for block in self.layers:
            x = block(x)
        return self._finish(x)

    def _finish(self, x):
        return self.result(x)


def test_the_order_of_the_forward_decides_where_the_source_tells_it():
    found = anatomy(OwnOrder())
    assert (found.head, found.doubt) == (("result",), "")
    assert found.how == "the layers behind the last block, in the order of the forward"


def test_what_belongs_to_a_backbone_behind_its_blocks_is_no_head():
    model = Plain(
        blocks=blocks(),
        norm=nn.LayerNorm(8),
        pooler=nn.Linear(8, 8),
        pos_embed=nn.Embedding(4, 8),
    )
    assert anatomy(model).head == ()
    features = Plain(
        stages=nn.Sequential(Unit(), Unit()),
        conv_head=nn.Conv2d(8, 16, 1),
        bn2=nn.BatchNorm2d(16),
        top=nn.Linear(16, 3),
    )
    assert anatomy(features).head == ("top",)


class Two(nn.Module):
    """Two layers without a list of blocks; the output comes last, or is unknown."""

    def __init__(self, output: str) -> None:
        super().__init__()
        self.add_module(output, nn.Linear(8, 2))
        self.first = nn.Linear(4, 8)
        self.output = output

    def forward(self, x):
        return getattr(self, self.output)(self.first(x).relu())


def test_without_blocks_a_name_decides_or_it_is_said_that_nothing_does():
    found = anatomy(Two("predictor"))
    assert (found.head, found.how) == (
        ("predictor",),
        "what is last in the order of the forward, and its name",
    )
    assert anatomy(Plain(rnn=nn.LSTM(2, 4), output_projector=nn.Linear(4, 1))).head == (
        "output_projector",
    )
    found = anatomy(Two("second"))
    assert found.head == ()
    assert "no head was found: head='second' would train the last part in full" in found.doubt
    found = anatomy(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)))
    assert "head='2'" in found.doubt
    assert anatomy(Plain(body=nn.Linear(4, 8), fc=nn.Linear(8, 2))).doubt == ""


def test_an_output_that_is_tied_to_the_embedding_is_no_head():
    model = Plain(tokens=nn.Embedding(11, 8), blocks=blocks(), out=nn.Linear(8, 11, bias=False))
    assert anatomy(model).head == ("out",)
    model.out.weight = model.tokens.weight
    assert anatomy(model).head == ()


def unetr() -> nn.Module:
    """MONAI's UNETR."""
    ups = {f"encoder{i}": Convs(blocks=i) for i in (1, 2, 3)}
    downs = {f"decoder{i}": Convs() for i in (3, 2)}
    return Plain(vit=encoder(), **ups, **downs, out=Plain(conv=nn.Conv2d(8, 2, 1)))


def terratorch() -> nn.Module:
    """TerraTorch's PixelWiseModel with an encoder of its own."""
    return Plain(
        encoder=encoder(),
        neck=nn.ModuleList([nn.Identity(), nn.Identity()]),
        decoder=Convs(blocks=3),
        head=nn.Sequential(nn.Dropout(0.1), nn.Conv2d(8, 2, 1)),
    )


def smp() -> nn.Module:
    """segmentation_models_pytorch's Unet: its encoder is a ResNet of torchvision without `fc`."""
    from torchvision.models.resnet import BasicBlock, ResNet

    class ResNetEncoder(ResNet):
        def __init__(self) -> None:
            super().__init__(BasicBlock, [1, 1, 1, 1])
            del self.fc

    with torch.device("meta"):
        return Plain(
            encoder=ResNetEncoder(),
            decoder=Plain(blocks=nn.ModuleList(Convs() for _ in range(3))),
            segmentation_head=nn.Sequential(nn.Conv2d(8, 2, 3), nn.Identity()),
        )


@pytest.mark.parametrize(
    ("build", "backbone", "head"),
    [
        (unetr, "vit", ("encoder1", "encoder2", "encoder3", "decoder3", "decoder2", "out")),
        (terratorch, "encoder", ("decoder", "head.1")),
        (smp, "encoder", ("decoder", "segmentation_head.0")),
    ],
    ids=["unetr", "terratorch", "smp"],
)
def test_the_encoder_is_the_backbone_and_the_rest_is_the_tasks(build, backbone, head):
    for model in (build(), Plain(net=build())):
        inner = "net." if hasattr(model, "net") else ""
        found = anatomy(model)
        assert found.head == tuple(inner + name for name in head)
        assert found.blocks
        assert all(name.startswith(f"{inner}{backbone}.") for name in found.blocks)


def test_two_networks_of_attention_are_one_model_and_it_is_said():
    decoder = Plain(blocks=nn.ModuleList([nn.TransformerDecoderLayer(8, 2)] * 2), n=nn.LayerNorm(8))
    found = anatomy(Plain(encoder=encoder(), decoder=decoder, generator=nn.Linear(8, 11)))
    assert found.head == ("generator",)
    assert "'encoder' and 'decoder' are both built of attention" in found.doubt


def test_stages_of_different_blocks_are_one_backbone():
    one, two = Plain(blocks=nn.ModuleList([Unit(), Unit()])), Plain(blocks=blocks())
    found = anatomy(Plain(stage1=one, stage2=two, out=nn.Linear(8, 2)))
    assert found.head == ("out",)
    assert len(found.blocks) == 5


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("fasterrcnn_resnet50_fpn", ("backbone.fpn", "rpn", "roi_heads")),
        ("maskrcnn_resnet50_fpn", ("backbone.fpn", "rpn", "roi_heads")),
        ("keypointrcnn_resnet50_fpn", ("backbone.fpn", "rpn", "roi_heads")),
        ("retinanet_resnet50_fpn", ("backbone.fpn", "head")),
        ("ssdlite320_mobilenet_v3_large", ("head",)),
    ],
)
def test_detectors_of_torchvision(name, head):
    import torchvision

    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    found = anatomy(model)
    assert (found.family, found.head) == ("torchvision", head)
    assert found.blocks
    assert all(name.startswith("backbone.") for name in found.blocks)


def small(kind: str, config: str, **sizes: int) -> nn.Module:
    import transformers

    with torch.device("meta"):
        return getattr(transformers, kind)(getattr(transformers, config)(**sizes))


@pytest.mark.parametrize(
    ("kind", "config", "head"),
    [
        ("DINOv3ViTModel", "DINOv3ViTConfig", ()),
        ("SiglipVisionModel", "SiglipVisionConfig", ()),
        ("Aimv2VisionModel", "Aimv2VisionConfig", ()),
        ("ModernBertModel", "ModernBertConfig", ()),
        ("ModernBertForMaskedLM", "ModernBertConfig", ()),
        ("ModernBertForSequenceClassification", "ModernBertConfig", ("head", "classifier")),
        ("DiaForConditionalGeneration", "DiaConfig", ()),
        ("HiggsAudioV2ForConditionalGeneration", "HiggsAudioV2Config", ()),
        ("Sapiens2Model", "Sapiens2Config", ()),
        ("CLIPVisionModelWithProjection", "CLIPVisionConfig", ()),
        ("ViTMAEForPreTraining", "ViTMAEConfig", ()),
    ],
)
def test_a_base_model_of_transformers_has_no_head(kind, config, head):
    model = small(kind, config, **({} if "Dia" in kind else {"num_hidden_layers": 1}))
    assert anatomy(model).head == head


def test_a_class_of_somebody_else_has_the_head_that_it_put_beside_the_base():
    from transformers import BertConfig, BertModel, BertPreTrainedModel

    class Mine(BertPreTrainedModel):
        def __init__(self, config) -> None:
            super().__init__(config)
            self.bert = BertModel(config)
            self.mine = nn.Linear(8, 2)

    with torch.device("meta"):
        model = Mine(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    assert anatomy(model).head == ("mine",)


def test_the_encoder_of_a_module_that_holds_its_decoder_beside_it():
    assert backbone_of(unetr())[0] == "vit"
    assert backbone_of(smp())[0] == "encoder"  # of torchvision: the decoder has blocks as well


def test_blocks_that_are_the_smaller_part_are_not_the_backbone():
    """A temporal fusion transformer: one layer of attention among much else."""
    part = Plain(layers=blocks(2))
    module = Plain(lstm=nn.LSTM(8, 64), attention=part, out=nn.Linear(8, 3))
    assert backbone_of(module) == ("", module)
    assert anatomy(module).head == ("out",)
    module.lstm = nn.LSTM(8, 1)
    assert backbone_of(module) == ("attention", part)


class Tables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(4, 8), nn.Embedding(4, 8)


class SharedEmbeddings(Tables):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.zeros(1, 8))


@pytest.mark.parametrize("Tables", [Tables, SharedEmbeddings])
def test_lists_of_embeddings_are_no_backbone(Tables):
    """pytorch-tabular's modules."""
    tables = Plain(layers=nn.ModuleList([Tables(), Tables(), Tables()]))
    module = Plain(_embedding=tables, _backbone=encoder(), _head=nn.Linear(8, 2))
    assert backbone_of(module) == ("_backbone", module._backbone)


def test_twins_are_asked_about_and_the_trained_one_is_proposed():
    module = Plain(teacher=encoder().requires_grad_(False), student=encoder())
    with pytest.raises(TargetError, match=r"'student' \(.*'teacher' \(.*, frozen\).*e='student'"):
        backbone_of(module)
