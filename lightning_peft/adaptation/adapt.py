"""``adapt(model, method) -> Adaptation``: the only entry point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from lightning_peft.adaptation.checks import Checks, as_names, parameters_named
from lightning_peft.adaptation.existing.taking import refuse_existing, take_existing
from lightning_peft.adaptation.fixed import asked_for, fixed_parameters
from lightning_peft.adaptation.handle import ATTRIBUTE, Adaptation, find_adaptation
from lightning_peft.adaptation.injection import inject, refuse_bypassed
from lightning_peft.adaptation.left_out import left_out
from lightning_peft.adaptation.precision import AdapterDtype, as_dtype
from lightning_peft.adaptation.state import ADAPTED
from lightning_peft.anatomy import anatomy
from lightning_peft.errors import MethodError
from lightning_peft.kernels import Memory
from lightning_peft.methods.existing import Existing
from lightning_peft.methods.memory import check_memory
from lightning_peft.methods.union import as_method

__all__ = ["adapt"]


def adapt(
    model: nn.Module,
    method: Any = "lora",
    *,
    head: str | Sequence[str] | Literal[False] | None = None,
    also_train: str | Sequence[str] = (),
    batchnorm: Literal["frozen", "held", "train"] = "frozen",
    backbone_dropout: Literal["train", "eval"] = "train",
    memory: Memory = "default",
    adapter_dtype: AdapterDtype = None,
    **settings: Any,
) -> Adaptation:
    """Adapt a backbone in place.

    The method's parameters, the head and ``also_train`` are trained; everything else is frozen.
    Parameters that the module itself fixed (``requires_grad=False`` in a model that is not frozen
    as a whole) stay fixed, in a head and with ``"full"`` too: see :attr:`Adaptation.fixed`.

    Args:
        model: The backbone: any module. A compiled one is adapted inside its wrapper.
        method: A method's name, a :class:`Method`, a ``peft.PeftConfig``, or a list of these.
            ``"existing"`` takes a ``PeftModel`` as it is.
        head: The task's last layer(s), trained in full and never adapted unless named as a target.
            ``None`` finds it, names or globs select it, ``False`` means that there is none.
        also_train: Names or globs of more modules or parameters of the backbone to train in full.
            Fixed parameters are trained if their own name is among them (``"*.scale"``).
        batchnorm: ``"frozen"`` keeps a BatchNorm whose own parameters are not all trained in
            evaluation mode, so that its statistics stay; ``"held"`` keeps all of them so, those
            whose scale and shift are trained too; ``"train"`` lets all statistics change.
        backbone_dropout: ``"eval"`` keeps the backbone's own dropout and drop-path off while
            training; the adapter's and the head's dropout are not changed.
        memory: Which tensors LoRA layers recompute in the backward pass instead of keeping them:
            ``"default"`` the output of an activation function, ``"low"`` that of a layer norm and
            in a quarter of the layers the first product of an MLP as well, ``"lowest"`` all of
            these products, ``"high"`` nothing. It changes results by rounding at most and is not
            saved: see :func:`accelerate`.
        adapter_dtype: The dtype of what the method adds, such as ``"bfloat16"``; it stays whatever
            the backbone is cast to, and is not saved. ``None`` is float32, or that of a layer in
            float64: in half precision most steps of an optimizer are lost. What is trained in
            place (the head, norms, biases) has the dtype of the backbone.
        **settings: Settings of the method, if it is given by name.

    Returns:
        The adaptation. :func:`find_adaptation` returns it from the model.

    Raises:
        MethodError: If the method is unknown, wrongly configured or cannot serve this backbone, or
            the backbone is already adapted, ``memory`` is to save memory with a method without
            fast LoRA layers, or ``adapter_dtype`` is no dtype that can be trained.
        TargetError: If a selection does not fit the model.

    The model is unchanged after an error, and errors that do not depend on each other are raised
    together.

    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> adaptation = lp.adapt(net, "lora", rank=2, targets="2")
    >>> [name for name, p in net.named_parameters() if p.requires_grad]
    ['2.lora_A.default.weight', '2.lora_B.default.weight']
    """
    model = model._modules.get("_orig_mod") or model
    if find_adaptation(model) is not None:
        raise MethodError(
            f"this {type(model).__name__} {ADAPTED}. Several methods at once are a list, such as "
            "['lora', 'bitfit']; to start again, build a new backbone."
        )
    chosen = as_method(method, **settings)
    checks = Checks()
    checks.one_of("batchnorm", batchnorm, ("frozen", "held", "train"))
    checks.one_of("backbone_dropout", backbone_dropout, ("train", "eval"))
    with checks:
        check_memory(chosen, memory)
    with checks:
        as_dtype(adapter_dtype)
    if isinstance(chosen, Existing):
        checks.done()
        return take_existing(
            model,
            chosen,
            head=head,
            also_train=also_train,
            batchnorm=batchnorm,
            backbone_dropout=backbone_dropout,
            adapter_dtype=adapter_dtype,
        )
    refuse_existing(model)
    more: tuple[str, ...] = ()
    with checks:
        more = parameters_named(model, also_train)
    found = plan = None
    with checks:
        found = anatomy(model, head=head)
    with checks:
        plan = chosen.plan(found, model) if found is not None else None
        if plan is not None:
            refuse_bypassed(model, plan)
    checks.done()
    assert found is not None
    assert plan is not None

    fixed = fixed_parameters(model, found.head)
    fixed -= asked_for(model, as_names(also_train), fixed)
    told = left_out(model, plan, found, (*plan.train, *more))
    injection = inject(model, chosen, plan, found, more, memory, fixed)
    adaptation = Adaptation(
        model=model,
        method=chosen,
        injection=injection,
        also_train=as_names(also_train),
        batchnorm=batchnorm,
        backbone_dropout=backbone_dropout,
    )
    adaptation.left_out = told
    model.__dict__[ATTRIBUTE] = adaptation
    adaptation.set_adapter_dtype(adapter_dtype)
    adaptation.freeze()
    adaptation.hold_modes()
    return adaptation
