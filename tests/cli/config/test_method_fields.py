"""The fields of a class, read off its source."""

import textwrap

import pytest

from lightning_peft.cli.config import method_fields
from lightning_peft.cli.config.method_fields import Field, fields_of


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write modules where the methods are looked for."""

    def write(**modules):
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))

    monkeypatch.setattr(method_fields, "METHODS", tmp_path)
    for cached in (method_fields.fields_of, method_fields._files):
        cached.cache_clear()
    yield write
    for cached in (method_fields.fields_of, method_fields._files):
        cached.cache_clear()


def test_fields_of_bases_come_first_and_are_overridden_in_place(written):
    written(
        base='''
            class Base(ABC):
                """One.

                Attributes:
                    width: How
                        wide.
                    depth: How deep: very.
                """

                title: ClassVar[str] = "base"
                width: int = 8
                depth: float | None = None
            ''',
        mine='''
            class Mine(Base):
                """Another.

                Attributes:
                    depth: Otherwise.

                Note:
                    shape: no field.
                """

                size: int
                width: int = 4
                depth: float | None = -1.5
                names: tuple[str, ...] = ("a", "b")

                def call(self):
                    local: int = 3
            ''',
    )
    assert fields_of("Mine") == (
        Field("width", 4, "How wide."),
        Field("depth", -1.5, "Otherwise."),
        Field("size", "???", ""),
        Field("names", ("a", "b"), ""),
    )
    assert fields_of("Elsewhere") == ()


def test_a_default_that_has_to_be_computed_is_an_error(written):
    written(mine="class Mine:\n    size: int = field(default_factory=list)\n")
    message = r"Mine.size: expected a literal .*, got field\(default_factory=list\): write"
    with pytest.raises(ValueError, match=message):
        fields_of("Mine")
