"""The help names everything that there is, and costs nothing."""

import inspect
import re
import subprocess
import sys

import pytest
import yaml
from omegaconf import OmegaConf

from lightning_peft.cli import main
from lightning_peft.cli.config.help import choices, default_choices, help_text, settings
from lightning_peft.cli.config.paths import conf_dir
from lightning_peft.cli.config.words import COMMANDS

HEAVY = (
    "torch",
    "lightning",
    "pytorch_lightning",
    "timm",
    "peft",
    "hydra",
    "omegaconf",
    "yaml",
    "rich",
)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from lightning_peft.cli import main; "
        "status = main(['method=lora', '--help']); "
        f"print(status, [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_help_names_every_command_group_and_choice_with_a_line_each(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    for name, command in COMMANDS.items():
        assert any(line.split()[:1] == [name] and command.summary in line for line in lines)
    root = conf_dir()
    for group in (path for path in root.iterdir() if path.is_dir() and path.name != "hydra"):
        assert f"  {group.name}=" in lines
        for file in group.glob("*.yaml"):
            comment = choices([root], group.name)[file.stem]
            assert any(
                line.replace("*", " ").split() == [file.stem, *comment.split()] for line in lines
            )
    assert max(map(len, lines)) <= 100


def test_help_marks_the_defaults_that_the_config_composes():
    text = help_text()
    for group, choice in default_choices(conf_dir()).items():
        section = text.partition(f"  {group}=\n")[2].partition("=\n")[0]
        marked = [line.split()[1] for line in section.splitlines() if line.startswith("    * ")]
        assert marked == ([choice] if choice else [])


def test_every_choice_and_setting_has_a_comment():
    root = conf_dir()
    for group in default_choices(root):
        for name, comment in choices([root], group).items():
            assert comment, f"{group}/{name}.yaml has no comment that says what it is"
            assert len(comment) <= 72, f"{group}/{name}.yaml: one line of help is 72 characters"
    assert all(setting.comment for setting in settings(root))


def test_help_shows_the_choices_of_a_directory_of_ones_own(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("# @package _global_\n# my own\nlr: 1\n")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "corner.yaml").write_text("# round the corner\nopen: true\n")
    for args in (["--config-dir", str(tmp_path)], [f"--config-dir={tmp_path}"]):
        lines = [line.split() for line in help_text(args).splitlines()]
        assert ["mine", "my", "own"] in lines
        assert ["shop="] in lines
        assert ["corner", "round", "the", "corner"] in lines


@pytest.mark.parametrize("name", sorted(choices([conf_dir()], "method")))
def test_the_help_of_a_method_has_every_field_of_its_class_with_the_default(name):
    import lightning_peft as lp

    section = help_text([f"method={name}"]).partition(f"Settings of method={name}\n")[2]
    shown = dict(re.findall(r"^    ([\w.]+)=(\S*)", section.partition("\n\n")[0], flags=re.M))
    config = OmegaConf.load(conf_dir() / "method" / f"{name}.yaml")
    assert float(shown.pop("lr")) == config.lr
    cls = getattr(lp, config.method._target_.removeprefix("lightning_peft."))
    expected = {
        f"method.{key}": "???" if parameter.default is parameter.empty else parameter.default
        for key, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    assert {key: yaml.safe_load(value) for key, value in shown.items()} == expected
    for key in expected:  # and a line that says what it is
        assert re.search(rf"^    {re.escape(key)}=\S*\s+\S", section, flags=re.M), key


def test_the_help_of_several_methods_has_each_and_leaves_out_what_is_none():
    text = help_text(["-m", "method=lora,sff,ssf"])
    assert re.findall(r"^Settings of method=(\w+)$", text, flags=re.M) == ["lora", "ssf"]
    assert "Settings of method" not in help_text([])


def test_composing_a_config_imports_no_class():
    code = (
        "import sys; from lightning_peft.cli import main; "
        "status = main(['method=adalora', 'method.interval=3', '--cfg', 'job']); "
        "print(status, [m for m in ('torch', 'lightning', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "  interval: 3\n  orthogonality: 0.1\n" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 []"


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_commands_have_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"usage: lightning-peft {command}" in capsys.readouterr().out


def test_the_choices_below_hydra_have_a_comment_and_the_help_names_their_groups(capsys):
    root = conf_dir() / "hydra"
    files = [*root.rglob("*.yaml")]
    assert files
    assert all(path.read_text().startswith("# ") for path in files)
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for group in {path.parent.relative_to(root.parent).as_posix() for path in files}:
        assert f"  {group}=" in out


def test_version(capsys):
    import lightning_peft

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"lightning-peft {lightning_peft.__version__}"
