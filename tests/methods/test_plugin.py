"""A method of another package is found, and keeps the promises that ours keep."""

import subprocess
import sys
from pathlib import Path

import peft
import pytest

import lightning_peft as lp
from lightning_peft.anatomy.targets import resolve
from lightning_peft.methods import registry
from lightning_peft.methods.base import Site
from lightning_peft.methods.from_peft.method import PeftMethod
from lightning_peft.methods.from_peft.targets import names_of, target_spec
from tests.contract import test_promises as promises
from tests.contract.cases import BACKBONES, WITHOUT_ATTENTION, Case

PLUGIN = Path(__file__).parents[2] / "examples" / "plugin"
PROMISES = {
    name.removeprefix("test_"): promise
    for name, promise in vars(promises).items()
    if name.startswith("test_") and name != "test_refused_before_anything_is_changed"
}
REFUSING = ("efficientnet", "mlp", "resnet", "tv_resnet")


def installed(directory, entry):
    """Make what pip leaves of an installed package: its module on the path, and its metadata."""
    info = directory / "lightning_peft_gates-0.1.0.dist-info"
    info.mkdir()
    about = "Metadata-Version: 2.1\nName: lightning-peft-gates\nVersion: 0.1.0\n"
    (info / "METADATA").write_text(about)
    (info / "entry_points.txt").write_text(f"[{registry.PLUGINS}]\ngates = {entry}\n")


@pytest.fixture(scope="module")
def gates(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("site")
        installed(directory, "lightning_peft_gates:Gates")
        patch.syspath_prepend(str(directory))
        patch.syspath_prepend(str(PLUGIN))
        patch.setattr(registry, "_METHODS", dict(registry._METHODS))
        patch.setattr(registry, "_seen", set(registry._seen))
        yield lp.create_method("gates")


def test_it_is_there_under_its_name_everywhere(gates):
    assert "gates" in lp.list_methods()
    assert lp.create_method("gates", layers="last:1").layers == "last:1"
    assert registry.method_from_config(gates.to_config()) == gates


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name not in REFUSING])
def test_it_keeps_the_promise(gates, promise, backbone, tmp_path):
    case = Case(backbone, gates, "gates")
    arguments = {"tmp_path": tmp_path} if promise.startswith("saved") else {}
    PROMISES[promise](case, **arguments)


@pytest.mark.parametrize("backbone", REFUSING)
def test_it_is_refused_where_there_is_no_mlp(gates, backbone):
    assert backbone in WITHOUT_ATTENTION
    with pytest.raises(lp.TargetError, match="'mlp-out': this model has no such layers"):
        lp.adapt(promises.build(backbone), gates)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("no_such_module:Gates", r"'gates' of lightning-peft-gates .*No module named"),
        ("math:pi", "expected a class derived from Method, got 3.14"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_a_warning(entry, message, tmp_path, monkeypatch):
    installed(tmp_path, entry)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.warns(UserWarning, match=message):
        names = lp.list_methods()
    assert "lora" in names


def test_a_plugin_is_not_imported_before_a_method_is_asked_for(tmp_path):
    installed(tmp_path, "lightning_peft_gates:Gates")
    code = "import sys, lightning_peft; print('lightning_peft_gates' in sys.modules)"
    paths = f"{tmp_path}:{PLUGIN}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": paths, "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


class Lean(PeftMethod):
    """LoRA of another package: derived from what ours derive from, or not, and silent on speed."""

    name = "lean"
    summary = "LoRA on the first block"
    reference = "none"

    def select(self, anatomy, model):
        return tuple(Site(name, self.name) for name in resolve(anatomy, model, "qkv"))

    def peft_config(self, model, sites):
        return peft.LoraConfig(r=2, target_modules=target_spec(model, names_of(sites)))


class LeanByHand(Lean):
    """The same, through ``peft``'s own function."""

    def inject(self, model, sites):
        peft.inject_adapter_in_model(self.peft_config(model, sites), model)


@pytest.mark.parametrize("method", [Lean, LeanByHand])
@pytest.mark.parametrize("memory", ["default", "high"])
def test_lora_of_another_package_is_fast_too(method, memory):
    model = promises.build("vit")
    adaptation = lp.adapt(model, method(), memory=memory)
    done = adaptation.report().acceleration
    assert (len(done.fast), done.plain, done.memory) == (2, {}, memory)


def test_a_backbone_with_layers_of_peft_is_refused_before_it_is_changed():
    model = promises.build("vit")
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["fc1"]), model)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with pytest.raises(lp.MethodError, match=r"without an adapter, got one .*'blocks.0.mlp.fc1'"):
        lp.adapt(model, "bitfit")
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before
