"""From a run to a file, and to the classes of images."""

import csv
import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

from lightning_peft.backbones.data_config import data_config
from lightning_peft.cli.commands import predict
from lightning_peft.cli.config.devices import device_of
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.jobs import served
from lightning_peft.cli.jobs.served import Served, load_run
from lightning_peft.cli.runs.occupied import this_process
from lightning_peft.cli.runs.summary import write_json
from lightning_peft.data.decode import Decoding

TINY = {"img_size": 24, "patch_size": 8, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2}


def pictures(folder, count=6):
    """Write digits as images of 8x8 pixels, nested, with one file that is no image."""
    from sklearn.datasets import load_digits

    (folder / "some" / "deep").mkdir(parents=True)
    levels = (load_digits().images[:count] * 255 / 16).round().astype("uint8")
    for index in range(count):
        image = Image.fromarray(levels[index])
        image.save(folder / ("some" if index % 2 else "some/deep") / f"{index}.png")
    (folder / "some" / "broken.png").write_bytes(b"no image")
    return torch.from_numpy(levels)[:, None].float() / 255


def plain_logits(weights, raw):
    """The answer without this package: timm, the weights, and the data's resize by hand."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **TINY).eval()
    model.load_state_dict(load_file(weights))
    large = torch.nn.functional.interpolate(raw, size=(24, 24), mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        return model((large - 0.25) / 0.3)


def check_what_may_be_asked_for(command, tmp_path, rows):
    """Files, patterns and tables have the same predictions as their folder."""
    (tmp_path / "images" / "some" / "notes.txt").touch()
    (tmp_path / "images" / "some" / "._3.png").write_bytes(b"no image")
    (tmp_path / "list.csv").write_text("split;file\ntest;some/1.png\ntest;some/deep/2.png\n")
    (tmp_path / "list.csv").rename(tmp_path / "images" / "list.csv")
    asked = {
        ("images/some/3.png",): ["some/3.png"],
        ("images/some/[1-3].png",): ["some/1.png", "some/3.png"],
        ("images/some/3.png", "images/some/deep"): [
            "some/3.png", *(f"some/deep/{k}.png" for k in (0, 2, 4))
        ],
        ("images/list.csv",): ["some/1.png", "some/deep/2.png"],
    }  # fmt: skip
    for words, names in asked.items():
        status, _, err = command("predict", "run", *words, "--out", "q.csv")
        assert status == 0, err
        with (tmp_path / "q.csv").open() as file:
            found = list(csv.DictReader(file))
        prefix = "" if words == ("images/list.csv",) else "images/"
        assert [row["path"] for row in found] == [prefix + name for name in names]
        for row, name in zip(found, names, strict=True):
            assert row["class"] == rows[name]["class"]
            assert float(row["probability"]) == pytest.approx(float(rows[name]["probability"]))
    _, _, err = command("predict", "run", "images/some/*", "--out", "q.csv")
    assert "1 file not read: .txt 1" in err
    _, _, err = command("predict", "run", "images", "--out", "q.csv")
    assert "2 files not read: .csv 1, .txt 1" in err
    for words, told in {
        ("images/some/5.pgn",): "got images/some/5.pgn, which does not exist. Did you mean '5.png'",
        ("images/*.gif",): "there is no image that fits images/*.gif",
        ("images/list.csv", "images"): "expected one CSV file of images, got 2 words",
    }.items():
        status, _, err = command("predict", "run", *words)
        assert status == 2
        assert told in err


def test_a_run_is_exported_and_predicts_as_timm_does_with_the_file(train, command, tmp_path):
    status, _, err = train("method=lora", "experiment=smoke", "hydra.run.dir=run")
    assert status == 0, err
    facts = json.loads((tmp_path / "run" / "serving.json").read_text())
    assert facts["class_names"] == list("0123456789")
    assert facts["preprocessing"]["input_size"] == [1, 24, 24]

    status, out, err = command("export", "run", "--out", "served/m.safetensors")
    assert status == 0, err
    assert "difference" in out
    card = json.loads((tmp_path / "served" / "m.safetensors.json").read_text())
    assert card["class_names"] == list("0123456789")
    assert card["output_difference"] < 1e-5

    raw = pictures(tmp_path / "images")
    status, out, err = command("predict", "run", "images", "--out", "p.csv", "--top", "2")
    assert status == 1
    assert "6 of 7 images" in out
    assert "broken.png: UnidentifiedImageError" in err
    with (tmp_path / "p.csv").open() as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert list(rows) == sorted(rows, key=lambda path: path.split("/"))
    probabilities = plain_logits(tmp_path / "served" / "m.safetensors", raw).softmax(-1)
    for index, expected in enumerate(probabilities):
        row = rows[f"some/{index}.png" if index % 2 else f"some/deep/{index}.png"]
        best, second = expected.topk(2).indices.tolist()
        assert (row["class"], row["class_2"]) == (str(best), str(second))
        assert float(row["probability"]) == pytest.approx(float(expected[best]), abs=1e-5)

    status, out, _ = command("predict", "run", "images")
    assert status == 1
    assert "some/deep/0.png" in out

    check_what_may_be_asked_for(command, tmp_path, rows)

    # the adapter alone, with the backbone on the command line: here a random one, so another
    words = ("model=timm", "model.backbone=vit_tiny_patch16_224", "model.pretrained=false")
    kwargs = ",".join(f"{k}: {v}" for k, v in TINY.items())
    words = (*words, f"model.backbone_kwargs={{{kwargs}}}")
    status, _, err = command("export", "run/adapter", *words, "--out", "x.safetensors")
    assert status == 2
    assert "was trained on another backbone" in err
    status, _, err = command("export", "run", *words, "--out", "x.safetensors")
    assert status == 2
    assert "a run has its own config" in err


def test_an_adapter_directory_takes_its_backbone_from_the_command_line(command, tmp_path):
    import lightning_peft as lp

    model = timm.create_model("glyph_vit", pretrained=True, num_classes=7)
    adaptation = lp.adapt(model, lp.LoRA(rank=2))
    with torch.no_grad():
        for parameter in adaptation.trained_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    adaptation.save(tmp_path / "adapter")
    status, _, err = command("export", "adapter", "model=glyph_vit", "--out", "m.safetensors")
    assert status == 0, err
    plain = timm.create_model("glyph_vit", num_classes=7).eval()
    plain.load_state_dict(load_file(tmp_path / "m.safetensors"))
    images = torch.randn(2, 1, 24, 24)
    assert torch.allclose(plain(images), model.eval()(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", ".", "--out", "m"], "without config.yaml and without serving.json"),
        (["export", ".", "--to", "onx", "--out", "m"], "no format 'onx'. Did you mean 'onnx'"),
        (["predict", ".", "nowhere", "--top", "0"], "--top of at least 1, got 0"),
        (
            ["predict", ".", "nowhere"],
            "expected an image, a folder of images, a pattern, or a CSV file, got nowhere",
        ),
        (["predict", ".", "."], "there is no image below ."),
        (["predict", ".", ".", "--out", "."], "--out: expected a CSV file to write, got the dir"),
        (
            ["predict", ".", ".", "--out", "file/p.csv"],
            "a directory to write to, got the file file",
        ),
        (["predict", ".", ".", "--device", "xyz"], "a device such as cuda or cpu, got 'xyz'"),
        (["predict", ".", ".", "--device", "meta"], "got 'meta': it holds no numbers"),
    ],
)
def test_what_cannot_be_served_is_told_in_a_line(command, tmp_path, words, message):
    (tmp_path / "file").touch()
    status, _, err = command(*words)
    assert status == 2
    assert all(line.startswith("lightning-peft: ") for line in err.splitlines())
    assert message in err


@pytest.mark.parametrize("error", [RuntimeError("No GPU\nis here"), AssertionError("No GPU")])
def test_a_device_that_is_not_there_is_refused_before_a_model_is_loaded(monkeypatch, error):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(ConfigError, match=r"expected a device of this machine.*'cuda': No GPU\.$"):
        device_of("cuda")


def test_a_device_that_is_there_is_found():
    assert device_of("cpu") == torch.device("cpu")
    assert device_of("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"num_classes": 1', r"serving.json: expected the facts that .* it is not JSON"),
        ('{"num_classes": 10}', "it has no class_names, it has no preprocessing. Restore the file"),
        ('{"num_classes": "x", "class_names": 3, "preprocessing": null}',
         "num_classes is 'x', class_names is 3"),
        ("[]", "it has no num_classes"),
        ('{"num_classes": 3, "class_names": ["a"], "preprocessing": null}',
         "there are 1 class_names for 3 classes"),
    ],
)  # fmt: skip
def test_facts_that_are_broken_are_named(tmp_path, text, match):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "config.yaml").touch()
    (tmp_path / "serving.json").write_text(text)
    with pytest.raises(ConfigError, match=match):
        load_run(tmp_path)


def test_the_name_of_a_file_or_a_class_is_no_markup(capsys):
    predict._print(iter([["[/b].png", "[red]"]]), ["[/path]", "class"])
    words = capsys.readouterr().out.split()
    assert words[:2] + words[-2:] == ["[/path]", "class", "[/b].png", "[red]"]


@pytest.mark.parametrize("known", [3, None])
def test_no_more_classes_are_told_than_there_are(command, tmp_path, monkeypatch, known):
    pictures(tmp_path / "images", 2)
    found = Served(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
        data_config({"input_size": (1, 8, 8), "mean": [0.5], "std": [0.5]}),
        lambda image: pil_to_tensor(image) / 255,
        ("a", "b", "c"),
        num_classes=known,
        decoding=Decoding("L"),
    )
    monkeypatch.setattr(served, "load_run", lambda *args, **kwargs: found)
    top = "20" if known else "3"
    status, _, err = command("predict", "run", "images", "--out", "p.csv", "--top", top)
    assert status == 1, err
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.reader(file))
    assert len(rows) == 3
    assert {len(row) for row in rows} == {7}
    assert rows[0][-2:] == ["class_3", "probability_3"]


def test_a_run_that_is_not_finished_is_told_as_such(command, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "images" / "a.png")
    summary = {"status": "running", "method": {"name": "lora"}, "process": this_process()}
    write_json(tmp_path / "run" / "summary.json", summary)
    for words in (["predict", "run", "images"], ["export", "run", "--out", "m.safetensors"]):
        status, _, err = command(*words)
        assert status == 2
        assert "run without config.yaml and without serving.json" in err
        assert "The run in run is not finished (interrupted): lightning-peft continue" in err
