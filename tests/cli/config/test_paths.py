"""The configs are found beside the code (wheel) and above it (checkout)."""

import pytest

from lightning_peft.cli.config.paths import conf_dir


@pytest.mark.parametrize("where", ["lightning_peft/conf", "conf"], ids=["wheel", "checkout"])
def test_found(tmp_path, where):
    (tmp_path / where).mkdir(parents=True)
    (tmp_path / where / "config.yaml").touch()
    assert conf_dir(tmp_path / "lightning_peft") == tmp_path / where


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"incomplete. Reinstall with: pip install"):
        conf_dir(tmp_path / "lightning_peft")
