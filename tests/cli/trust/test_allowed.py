"""Which classes a recorded run may build."""

import re
import sys
from pathlib import Path

import pytest

from lightning_peft.cli.config.paths import conf_dir
from lightning_peft.cli.trust.allowed import refusal, targets_in
from lightning_peft.cli.trust.printable import printable


@pytest.mark.parametrize(
    "target",
    [
        *("lightning_peft.LoRA", "lightning_peft.ImageClassifier", "lightning.pytorch.Trainer"),
        *("lightning.pytorch.callbacks.ModelCheckpoint", "lightning.pytorch.loggers.CSVLogger"),
        *("torch.optim.AdamW", "torch.optim.lr_scheduler.StepLR", "timm.create_model"),
        *("torchvision.transforms.Resize", "torchvision.transforms.v2.Resize"),
        *("torchmetrics.Accuracy", "torchmetrics.classification.BinaryAUROC"),
        "lightning_peft.cli.jobs.progress.StepProgress",
    ],
)
def test_the_classes_of_a_run_are_built(target):
    assert refusal(target) is None


def test_every_class_of_the_shipped_configs_is_built():
    named = set(
        re.findall(r"_target_: (\S+)", "\n".join(p.read_text() for p in conf_dir().rglob("*.yaml")))
    )
    assert len(named) > 50
    assert [target for target in sorted(named) if refusal(target) is not None] == []


@pytest.mark.parametrize(
    "target",
    [
        *("os.system", "builtins.eval", "torch.hub.load", "torch.load", "joblib.load"),
        "numpy.load",
        *("shutil.copyfile", "hydra.utils.get_method", "hydra.utils.instantiate"),
        "functools.partial",
        # functions, and classes of another kind, of the packages that are known
        *("lightning_peft.load_from_checkpoint", "lightning_peft.load_adapter"),
        "lightning_peft.os",
        *("lightning_peft.cli.main", "lightning_peft.cli.app.main", "timm.models.load_checkpoint"),
        *("lightning.pytorch.cli.LightningCLI", "lightning.pytorch.cli.SaveConfigCallback"),
        *("lightning.pytorch.seed_everything", "lightning.pytorch.trainer.trainer.os.system"),
        *("torch.optim.optimizer.functools.partial", "torchvision.datasets.ImageFolder"),
        *("torchvision.io.read_image", "torchvision.transforms.functional.resize"),
        *("torchmetrics.text.BERTScore", "torchmetrics.functional.accuracy"),
        "timm.optim.create_optimizer",
        *("lightning_peft", "lightning_peft.", ".os", "", "lightning_peft.LoRA.__init__", "a b"),
        *("lightning.pytorch.Nothing", None, 3, ["os.system"], {"_target_": "os.system"}),
    ],
)  # fmt: skip
def test_everything_else_is_refused(target):
    assert refusal(target) is not None


def test_another_package_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert refusal("stranger.run") == "got stranger.run"
    assert "stranger" not in sys.modules


def test_what_the_own_configs_name_is_built(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text(
        '_target_: mine.Net\nloss: {"_target_": mine.Loss}\n'
    )
    own = targets_in([Path(tmp_path)])
    assert own == {"mine.Net", "mine.Loss"}
    assert refusal("mine.Net", own) is None
    assert refusal("mine.Other", own) == "got mine.Other"


def test_a_method_of_an_installed_plug_in_is_built(monkeypatch):
    from lightning_peft.cli.trust import allowed

    monkeypatch.setattr(allowed, "_plugins", lambda: frozenset({"lightning_peft.methods.lora"}))
    assert refusal("lightning_peft.methods.lora.LoRA") is None
    assert (
        refusal("lightning_peft.methods.lora.dataclass")
        == "got lightning_peft.methods.lora.dataclass"
    )


def test_a_terminal_gets_no_control_characters():
    assert printable("été (lora) 日本") == "été (lora) 日本"
    assert printable("a\x1b[2J\r\u202eb\x07\u2028") == "a\\x1b[2J\\r\\u202eb\\x07\\u2028"
