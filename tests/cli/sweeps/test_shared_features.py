"""The jobs of a sweep run the frozen part of their backbone once for all."""

import json

import pytest

from lightning_peft.caching import PrefixCache

WORDS = (
    *("method=linear_probe", "augment=none", "data.labels_per_class=2", "data.val_per_class=2"),
    *("trainer.max_steps=6", "trainer.limit_test_batches=1", "bootstrap=0"),
)


@pytest.fixture
def counts(monkeypatch):
    """The counts of each cache that was installed, in their order."""
    found = []
    install = PrefixCache.install

    def noted(self):
        found.append(self.count)
        install(self)

    monkeypatch.setattr(PrefixCache, "install", noted)
    return found


def metrics(directory):
    runs = sorted(directory.glob("*/summary.json"))
    return [json.loads(path.read_text())["metrics"] for path in runs]


def test_the_second_job_computes_nothing_and_the_scores_are_the_same(
    train, tmp_path, counts, undrawn, monkeypatch
):
    from lightning_peft.cli.jobs.shared_features import SharedFeatures

    monkeypatch.setattr(SharedFeatures, "_told", False)
    monkeypatch.setattr(SharedFeatures, "_checked", {})
    sweep = ("-m", *WORDS, "lr=0.01,0.02")
    status, _, err = train(*sweep, "hydra.sweep.dir=shared")
    assert status == 0, err
    assert err.count("runs once for all jobs") == 1
    first, second = counts[:3], counts[3:]  # of training, the validation of the best, and the test
    assert all(count.cached < count.batches for count in first)
    assert [count.found for count in second] == [count.samples for count in second]
    assert second[0].cached == second[0].batches > 0  # what was compared once is not again
    assert not (tmp_path / "shared" / ".features").exists()
    counts.clear()
    status, _, err = train(*sweep, "hydra.sweep.dir=alone", "shared_features_gb=0")
    assert (status, counts) == (0, [])
    mine, other = metrics(tmp_path / "shared"), metrics(tmp_path / "alone")
    assert len(mine) == 2
    for left, right in zip(mine, other, strict=True):
        assert left == pytest.approx(right, rel=1e-5)


@pytest.mark.parametrize(
    "words",
    [("augment=light",), ("callbacks=feature_cache",)],
    ids=["augmented", "a cache of its own"],
)
def test_where_nothing_is_shared(words, train, counts, undrawn):
    status, _, err = train("-m", *WORDS, *words, "hydra.sweep.dir=sweep", "lr=0.01")
    assert status == 0, err
    assert "runs once for all jobs" not in err
    assert len(counts) == ("callbacks=feature_cache" in words)  # in training, as in a single run


def test_a_negative_limit_is_refused(train):
    status, _, err = train(*WORDS, "shared_features_gb=-1")
    assert status == 2
    assert "shared_features_gb: expected 0 (none) or more, got -1" in err
