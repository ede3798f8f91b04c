"""Models of the Hugging Face hub, and directories in their form."""

import pytest

from lightning_peft.backbones.hugging_face import load_config
from lightning_peft.errors import DataError


def test_no_code_of_a_models_repository_is_run(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    (tmp_path / "config.json").write_text(
        '{"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}}'
    )
    with pytest.raises(DataError, match="contains custom code which must be executed"):
        load_config(str(tmp_path), 2, {})
    assert not (tmp_path / "canary").exists()
