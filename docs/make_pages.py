"""Write the generated pages of the documentation: ``python docs/make_pages.py``.

A test compares the pages with the output of this script, so they cannot go stale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT.parent))

from docs.site import reference  # noqa: E402


def methods_page() -> str:
    """Build the table of methods, counted on ViT-B/16 and, for convolutions, on ResNet-50."""
    return "\n".join(_methods()) + "\n"


def _methods() -> Iterator[str]:
    import timm
    import torch

    from lightning_peft.adaptation.catalogue import catalogue

    def build(name: str) -> torch.nn.Module:
        with torch.device("meta"):
            return timm.create_model(name, num_classes=0)

    images = torch.empty(1, 3, 224, 224, device="meta")
    vit = list(catalogue(partial(build, "vit_base_patch16_224"), images))
    yield "# The methods"
    yield ""
    yield "Every method of the package with its formula, cost and paper. [Which"
    yield "method?](which-method.md) helps to choose one, and"
    yield "[Configs](reference/configs.md#settings-of-the-methods) has the settings of each."
    yield ""
    yield "*trained* counts the parameters of a ViT-B/16 without a head, at each method's"
    yield "defaults. *at inference* counts, but does not time, the operations of a forward pass"
    yield "beyond those of the backbone. All tuners of the installed `peft` that adapt modules"
    yield "can be used as well: `lightning-peft methods --tuners` lists them. (`python"
    yield "docs/make_pages.py` generates this page from the registry.)"
    yield ""
    yield "| name | family | what it computes or trains | trained | at inference | source |"
    yield "|---|---|---|---|---|---|"
    not_here = [entry.name for entry in vit if not entry.trained]
    resnet = {e.name: e for e in catalogue(partial(build, "resnet50"), images, not_here)}
    for entry in vit:
        method = entry.method
        shown, where = (entry, "") if entry.trained else (resnet[entry.name], " (ResNet-50)")
        if shown.trained is None:  # only a head, and there is none here
            trained, cost = "0", "nothing"
        else:
            trained = f"{shown.trained:,}{where}"
            cost = f"+{shown.extra:.2%} operations" if shown.extra else _free(method)
        source = method.reference.removeprefix("https://")
        link = f"[{source}]({method.reference})" if source != method.reference else source
        formula = method.formula.replace("|", "\\|")
        yield (
            f"| `{entry.name}` | {method.family} | {method.summary}: `{formula}` "
            f"| {trained} | {cost} | {link} |"
        )


def _free(method: type) -> str:
    if getattr(method, "changes_backbone", False):
        return "nothing: trained in place"
    return "nothing once merged"


def matrix_page() -> str:
    """Build the matrix of methods and backbones from the cases of the contract suite."""
    return "\n".join(_matrix()) + "\n"


def _matrix() -> Iterator[str]:
    from lightning_peft.methods import list_tuners
    from tests.contract.cases import BACKBONES, CASES, REFUSED
    from tests.support.outside import OUTSIDE
    from tests.support.zoo import ZOO

    labels = list(dict.fromkeys(case.label for case in CASES))
    reasons: dict[str, int] = {}
    for case in CASES:
        said = REFUSED.get((case.label, case.backbone))
        if said is not None:
            reasons.setdefault(said, len(reasons) + 1)
    refused = sum((case.label, case.backbone) in REFUSED for case in CASES)
    yield "# Every method on every backbone"
    yield ""
    yield "Look here whether a method can adapt your kind of backbone. *yes* means that the"
    yield "pair passes every check of `tests/contract`; a number means that it is refused"
    yield f"before anything is changed, for the reason of that number below. Of {len(CASES)}"
    yield f"pairs {len(CASES) - refused} pass and {refused} are refused. The backbones are tiny"
    yield "and random, with the architectures below. (`python docs/make_pages.py` generates"
    yield "this page from the cases of the tests.)"
    yield ""
    yield "Each linear method is also compared with dense algebra: `W + dW` is put into a plain"
    yield "copy of the backbone by hand, and outputs and gradients are compared"
    yield "(`test_references.py`). Each tuner of `peft` is compared with `peft` alone"
    yield "(`test_peft_alone.py`)."
    for title, backbones in (
        ("Architectures", BACKBONES),
        ("Layers and models with something unusual", tuple(OUTSIDE)),
    ):
        yield ""
        yield f"## {title}"
        yield ""
        yield "| method | " + " | ".join(backbones) + " |"
        yield "|---" * (len(backbones) + 1) + "|"
        for label in labels:
            cells = [
                str(reasons[REFUSED[label, backbone]]) if (label, backbone) in REFUSED else "yes"
                for backbone in backbones
            ]
            yield f"| `{label}` | " + " | ".join(cells) + " |"
    yield ""
    yield "## Reasons"
    yield ""
    for said, number in reasons.items():
        yield f"{number}. “{_plain(said)}”"
    yield ""
    yield "The prefix `hf:` marks tuners of `peft`. These cannot be injected into a backbone:"
    yield ""
    for tuner, why in list_tuners().items():
        if why is not None:
            yield f"- `{tuner}`: {why.removeprefix(tuner).strip()}."
    yield ""
    yield "## Backbones"
    yield ""
    for name, factory in {**ZOO, **OUTSIDE}.items():
        yield f"- `{name}`: {' '.join((factory.__doc__ or '').split()).rstrip('.')}."


def _plain(pattern: str) -> str:
    """Return the words that a regular expression of the tests matches."""
    return pattern.replace("|", "” or “").replace("\\", "")


def states_page() -> str:
    """Build the table of the states of an adaptation, from what refuses operations in them."""
    return "\n".join(_states()) + "\n"


def _states() -> Iterator[str]:
    from lightning_peft.adaptation.state import OPERATIONS, REFUSED, STATES

    numbers = {reason: n for n, reason in enumerate(dict.fromkeys(REFUSED.values()), 1)}
    yield "# What may be done in which state"
    yield ""
    cells = len(STATES) * len(OPERATIONS)
    yield "Look here which operation of an adaptation works in which state. Where the table"
    yield "says *right*, the operation does what it does in the first state; a number is that"
    yield "of the reason below, for which it is refused before anything has changed."
    yield f"`tests/adaptation/test_states.py` runs all {cells} cells. (`python"
    yield "docs/make_pages.py` generates this page from `lightning_peft/adaptation/state.py`,"
    yield "which every operation asks.)"
    yield ""
    yield "| operation | " + " | ".join(STATES) + " |"
    yield "|---" * (len(STATES) + 1) + "|"
    for operation in OPERATIONS:
        reasons = [REFUSED.get((state, operation)) for state in STATES]
        row = ["right" if reason is None else str(numbers[reason]) for reason in reasons]
        yield f"| {operation} | " + " | ".join(row) + " |"
    yield ""
    yield "States (several may hold at once; then all of them have to allow an operation):"
    yield ""
    for state, when in STATES.items():
        yield f"- {state}: {when}"
    yield ""
    yield "Reasons:"
    yield ""
    for reason, number in numbers.items():
        yield f"{number}. “{reason}.”"
    yield ""
    yield "A checkpoint is that of a trainer, or of `module.on_save_checkpoint`. A trainer"
    yield "that only evaluates a module whose adaptation was unloaded leaves it as it is, unless"
    yield "it is to load a checkpoint; `fit` adapts it anew. A deep copy shares nothing with a"
    yield "running average."


PAGES = {"methods.md": methods_page, "matrix.md": matrix_page, "states.md": states_page}
PAGES |= reference.PAGES


def main() -> None:
    """Write the pages."""
    for name, make in PAGES.items():
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
