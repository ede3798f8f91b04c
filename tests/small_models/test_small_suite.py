"""The suite of small models itself, on one of them: what is wrong is found."""

from __future__ import annotations

import dataclasses

import pytest

from tests.small_models import checks
from tests.small_models.bases import without_head
from tests.small_models.lines import lines
from tests.small_models.models import MODELS
from tests.small_models.page import main as page
from tests.small_models.results import RESULTS, read

LLAMA = checks.Line(MODELS["Llama"], "float32")


def test_a_model_that_is_served_passes_every_check(tmp_path):
    found = checks.measure(LLAMA, tmp_path)
    assert found["status"] == "ok", found
    assert found["checks"]["resume"] == found["checks"]["peft"] == "ok"
    assert 0 < found["trained"] < found["total"]


def test_what_is_refused_has_its_reason(tmp_path):
    line = dataclasses.replace(LLAMA, words={"targets": "nowhere"})
    found = checks.measure(line, tmp_path)
    assert found["status"] == "refused"
    assert "matches no module" in found["message"]


@pytest.mark.parametrize(
    ("message", "names"),
    [
        (
            "got codes, which have no gradient, in classifier.weight, a.score.weight. Train an "
            "adapter beside them ('lora'). A head: keep it out of the quantisation (x)",
            ["classifier", "a.score"],
        ),
        ("something else", []),
    ],
)
def test_a_refusal_says_what_to_keep_out_of_the_quantisation(message, names):
    assert without_head(message) == names


def test_every_result_is_right_or_has_a_reason():
    found = read(RESULTS)
    assert found.keys() <= {line.key for line in lines()}
    for key, line in found.items():
        assert line["status"] in ("ok", "refused", "base fails"), key
        assert line["status"] == "ok" or line["message"], key


def test_the_page_is_current():
    assert page(["--check"]) == 0
