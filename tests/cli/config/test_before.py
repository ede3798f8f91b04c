"""What a job lacks is said before anything heavy is imported."""

import importlib.util

import pytest

from lightning_peft.cli.config.before import check_before
from lightning_peft.cli.config.errors import ConfigError


def test_all_that_is_missing_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    real = importlib.util.find_spec
    missing = ("sklearn", "wandb")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else real(name)
    )
    with pytest.raises(ConfigError) as info:
        check_before(
            {
                "data": {"_target_": "lightning_peft.ImageFolderDataModule", "root": "imags"},
                "logger": {"w": {"_target_": "lightning.pytorch.loggers.WandbLogger"}, "no": None},
                "resume": "runs/last.ckpt",
                "baselines": ["nearest_neighbour"],
            }
        )
    assert info.value.problems == (
        "data.root: expected a folder of images, got imags, which does not exist. Did you mean "
        "'images'?",
        "resume: expected a checkpoint, got runs/last.ckpt, which does not exist. It is looked for "
        f"in {tmp_path}.",
        "logger.w: `wandb` is needed for this and is not installed. Install it with: pip install "
        "'lightning-peft[wandb]'",
        "baselines: `sklearn` is needed for this and is not installed. Install it with: pip "
        "install 'lightning-peft[data]'",
    )


@pytest.mark.parametrize(
    ("target", "root", "told"),
    [
        ("ImageFolderDataModule", "file.csv", "a folder of images, got file.csv, which is someth"),
        ("VTABDataModule", "nowhere", "the folder that holds the tasks, got nowhere"),
        ("TextDataModule", "folder", "a CSV file of texts and labels, got folder, which is someth"),
        ("ChatDataModule", "fil.csv", "a JSONL or CSV file, got fil.csv.*Did you mean 'file.csv'"),
    ],
)
def test_the_root_of_each_kind_of_data(tmp_path, monkeypatch, target, root, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.csv").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=f"data.root: expected {told}"):
        check_before({"data": {"_target_": f"lightning_peft.{target}", "root": root}})
    good = "folder" if target in ("ImageFolderDataModule", "VTABDataModule") else "file.csv"
    check_before({"data": {"_target_": f"lightning_peft.{target}", "root": good}})
    check_before({"data": {"_target_": "somebody.Data", "root": root}, "resume": "best"})


def test_a_labels_file_is_looked_for_in_both_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    data = {"_target_": "lightning_peft.ImageFolderDataModule", "root": "images"}
    with pytest.raises(
        ConfigError, match=r"data.labels: expected a CSV file there or here, got im"
    ):
        check_before({"data": data | {"labels": "a.csv"}})
    for place in (tmp_path, tmp_path / "images"):
        (place / "a.csv").touch()
        check_before({"data": data | {"labels": "a.csv"}})
        (place / "a.csv").unlink()


def test_torch_is_not_imported_for_it(process, tmp_path):
    root = ["data=folder", "data.root=nowhere"]
    cases = [
        ([*root, "model=glyph_vit"], "data.root: expected a folder of images, got nowhere"),
        (["show", *root, "model=glyph_vit"], "data.root: expected a folder of images, got nowh"),
        (["rank", "models=glyph_vit", *root], "data.root: expected a folder of images, got nowh"),
        (root, "model.backbone needs a value: which pretrained model?"),
        (["data=digits"], "data: `sklearn` is needed for this and is not installed. Install it"),
    ]
    script = tmp_path / "script.py"
    script.write_text(
        "import importlib.util, sys\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'sklearn' else "
        "real(name, *more)\n"
        "from lightning_peft.cli import main\n"
        f"for words in {[words for words, _ in cases]!r}:\n"
        "    assert main(words) == 2\n"
        "    assert 'torch' not in sys.modules\n"
        "    print('--', file=sys.stderr)\n"
    )
    done = process([str(script)])
    assert done.returncode == 0, done.stderr
    for (_, expected), told in zip(cases, done.stderr.split("--\n"), strict=False):
        assert expected in told
        assert all(line.startswith("lightning-peft: ") for line in told.splitlines())
