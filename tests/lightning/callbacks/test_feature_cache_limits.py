"""Where the feature cache would be wrong, it is off."""

import copy
import errno
import os
import re

import lightning as L
import pytest
import torch
from torch import nn

import lightning_peft as lp
from lightning_peft.errors import MethodError
from lightning_peft.evaluation.efficiency import human_bytes
from tests.support.cached import Net, Rows, close, fit, same, samples
from tests.support.zoo import build, example_input


def test_random_augmentation_turns_it_off_in_the_second_epoch(said):
    data = Rows(samples("vit"), noise=0.1)
    callback = lp.FeatureCache()
    fit(Net("vit", data, validate=False), lp.PEFT("linear_probe"), callback)
    assert "0 had been seen before" in callback.cache.off
    assert "RepeatedViews" in said()
    assert callback.cache.count.batches == 6  # the first epoch, and the second until its end
    assert len(callback.cache.store) == 0


def test_augmentation_that_repeats_itself_is_cached():
    def module():
        data = lp.RepeatedViews(Rows(samples("vit"), noise=0.1), views=2)
        return Net("vit", data, validate=False)

    callback = lp.FeatureCache()
    cached = fit(module(), lp.PEFT("linear_probe"), callback, max_epochs=6)
    assert callback.cache.off is None
    assert callback.cache.count.cached == 11  # four epochs of three batches, less the one compared

    class Epochs(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.rows.set_epoch(trainer.current_epoch)

    close(fit(module(), lp.PEFT("linear_probe"), Epochs(), max_epochs=6), cached)


def test_dropout_before_the_end_ends_the_first_part(said):
    def module():
        net = build("vit")
        net.pos_drop.p = 0.5
        return Net(net=net)

    callback = lp.FeatureCache(min_share=0.5)
    close(fit(module(), lp.PEFT("linear_probe")), fit(module(), lp.PEFT("linear_probe"), callback))
    assert "'pos_drop': it draws random numbers in this mode" in said()
    # in evaluation mode there is no dropout, and validation reads its features back
    assert callback.cache.count.cached == 5


def test_batchnorm_that_learns_its_statistics_ends_it(said):
    def peft():
        return lp.PEFT("linear_probe", batchnorm="train")

    callback = lp.FeatureCache()
    same(fit(Net("resnet"), peft()), fit(Net("resnet"), peft(), callback))
    assert "'bn1': it changes its buffers" in said()
    assert callback.cache.count.cached == 0


def test_gradient_checkpointing_turns_it_off():
    module = Net("vit")
    module.net.set_grad_checkpointing()
    callback = lp.FeatureCache()
    fit(module, lp.PEFT("last_blocks"), callback, max_epochs=1)
    assert "gradient checkpointing" in callback.cache.off


def test_a_module_that_never_calls_its_backbone(said):
    class Parts(Net):
        def loss(self, batch):
            features = self.net.forward_features(batch[0])
            return nn.functional.cross_entropy(self.net.forward_head(features), batch[1])

    callback = lp.FeatureCache()
    fit(Parts("vit"), lp.PEFT("linear_probe"), callback, max_epochs=2)
    assert "never called the backbone's own forward" in said()


def test_more_than_max_bytes_is_refused_before_anything_is_kept(said):
    callback = lp.FeatureCache(max_bytes=100)
    fit(Net("vit"), lp.PEFT("linear_probe"), callback, max_epochs=2)
    found = re.search(r"it would keep (\d+) B a sample, (.*) for 16 samples", callback.cache.off)
    assert found is not None, callback.cache.off
    assert found[2] == human_bytes(16 * int(found[1]))
    assert callback.cache.count.cached == 0


def test_frozen_weights_that_are_written_to_are_noticed(said):
    class Write(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:  # behind autograd's back, which counts no such writes
                pl_module.net.blocks[0].mlp.fc1.weight.data.mul_(1.5)

    with pytest.warns(UserWarning, match="the module itself has changed: net.blocks.0.mlp.fc1"):
        plain = fit(Net("vit"), lp.PEFT("linear_probe"), Write())
    with pytest.warns(UserWarning, match="the module itself has changed: net.blocks.0.mlp.fc1"):
        cached = fit(Net("vit"), lp.PEFT("linear_probe"), Write(), lp.FeatureCache())
    close(plain, cached)
    assert "frozen weights were written to" in said()


def test_an_exception_leaves_the_backbone_as_it_was():
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == 5:
                raise RuntimeError("stop")

    module = Net("vit")
    with pytest.raises(RuntimeError, match="stop"):
        fit(module, lp.PEFT("linear_probe"), lp.FeatureCache(), Stop())
    assert "forward" not in module.net.__dict__
    assert not any("forward" in part.__dict__ for part in module.modules())


def test_a_copy_made_in_the_middle_runs_whole():
    class Copy(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            self.copy = copy.deepcopy(pl_module.net)

    keep = Copy()
    module = fit(Net("vit"), lp.PEFT("linear_probe"), lp.FeatureCache(), keep)
    images = example_input("vit", 9)
    assert torch.equal(keep.copy.eval()(images), module.net.eval()(images))


def test_settings_out_of_range_are_refused_together(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(MethodError, match="max_bytes.*min_share.*directory"):
        lp.FeatureCache(max_bytes=0, min_share=2, directory=file)


def test_a_strategy_that_shards_is_left_alone(said):
    class FSDPStrategy:
        pass

    class Trainer:
        strategy = FSDPStrategy()

    callback = lp.FeatureCache()
    callback.on_fit_start(Trainer(), Net("vit"))
    assert "FSDPStrategy" in callback.cache.off


@pytest.mark.parametrize("how", ["full", "unusable"])
def test_a_directory_that_takes_no_features_turns_it_off_and_the_run_is_the_same(
    how, said, tmp_path, monkeypatch
):
    directory = tmp_path / "features"
    callback = lp.FeatureCache(directory=directory)
    with monkeypatch.context() as patch:
        if how == "full":
            calls = []

            def flush(file):
                calls.append(file)
                if len(calls) > 2:  # the first file and its directory reach the disk
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patch.setattr(os, "fsync", flush)
        else:
            tmp_path.joinpath("features").symlink_to("/proc/self/status")
        mine = fit(Net("vit"), lp.PEFT("linear_probe"), callback)
    assert said().count("FeatureCache: off, since nothing can be kept in") == 1
    assert ("expected room for" in said()) is (how == "full")
    close(mine, fit(Net("vit"), lp.PEFT("linear_probe")))
    if how == "full":
        assert [path.suffix for path in directory.iterdir()] == [".safetensors"]
        again = lp.FeatureCache(directory=directory)
        close(mine, fit(Net("vit"), lp.PEFT("linear_probe"), again))
        assert again.cache.count.cached > 0
