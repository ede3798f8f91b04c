"""Serve ``lightning-peft export`` for models of texts: a directory that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_peft.backbones.causal_lm import length_limit
from lightning_peft.backbones.hugging_face import quietly
from lightning_peft.errors import ExportError, MethodError

if TYPE_CHECKING:
    from lightning_peft.cli.jobs.served_language import ServedLanguage

__all__ = ["check_language_export", "export_language"]

FORMATS = ("safetensors", "adapter")
TOLERATED = 0.1
"""The largest difference of outputs, relative to the largest; rounding to bfloat16 is below it."""
TOKENS = 16

AUTO = {
    "language": "AutoModelForCausalLM",
    "preference": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "token_classification": "AutoModelForTokenClassification",
}
"""The class of transformers for each task; of texts with labels it is another one."""

OF_TEXTS = "AutoModelForSequenceClassification"

TASK_TYPES = {
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
    "AutoModelForTokenClassification": "TOKEN_CLS",
    OF_TEXTS: "SEQ_CLS",
}

PROBLEMS = {
    "multiclass": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}
"""What transformers calls the tasks of texts with labels."""


def check_language_export(out: Path, format: str) -> None:
    """Refuse what cannot be exported, before anything is loaded.

    Raises:
        ExportError: If there is no such format, or the directory holds something.
    """
    if format not in FORMATS:
        raise ExportError(
            f"--to: expected one of {', '.join(FORMATS)} for a model of texts, got {format}. Other "
            "tools make graphs of the merged model."
        )
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ExportError(f"--out: expected a new or an empty directory, got {out}.")


def export_language(served: ServedLanguage, out: Path, format: str) -> str:
    """Write a model of texts with its tokeniser, and read it back.

    Args:
        served: The model.
        out: The directory: new or empty.
        format: ``"safetensors"``, the merged model for ``from_pretrained`` of the class of its task
            (:data:`AUTO`); or ``"adapter"``, for ``PeftModel.from_pretrained`` and vLLM.

    Returns:
        What was written, in lines.

    Raises:
        ExportError: As :func:`check_language_export`; or if there is no adapter, it cannot be
            merged, or what is read back gives other outputs.
    """
    check_language_export(out, format)
    return _adapter(served, out) if format == "adapter" else _merged(served, out)


def _merged(served: ServedLanguage, out: Path) -> str:
    import torch
    import transformers

    from lightning_peft.adaptation.handle import find_adaptation

    model: Any = served.backbone
    auto = AUTO.get(served.task, OF_TEXTS)
    length = min(TOKENS, length_limit(model) or TOKENS)
    ids = torch.arange(length)[None] * 7 % model.config.vocab_size
    inputs: dict[str, Any] = {"input_ids": ids}
    if auto == "AutoModelForCausalLM":
        inputs["use_cache"] = False
    elif auto == "AutoModelForSeq2SeqLM":
        inputs |= {"decoder_input_ids": ids, "use_cache": False}
    with torch.no_grad():
        before = model(**inputs).logits.float()
        adaptation = find_adaptation(model)
        if adaptation is not None:
            try:
                model = adaptation.merge_and_unload()
            except MethodError as error:
                raise ExportError(
                    f"--to: expected an adapter that can be merged, but {error} Export it with "
                    "--to adapter."
                ) from error
        _describe(model.config, served)
        with quietly(transformers):
            model.save_pretrained(out)
            served.tokenizer.save_pretrained(out)
            loaded: Any = getattr(transformers, auto).from_pretrained(out, dtype="auto")
            loaded.eval()
        after = loaded(**inputs).logits.float()
    difference = float((after - before).abs().max() / before.abs().max())
    if not difference <= TOLERATED:
        raise ExportError(
            f"{out}: expected the outputs of the adapted model, read back, but they differ by "
            f"{difference:.2g} of the largest. Do not use it."
        )
    told = f"difference  {difference:.1e} of the largest output, read back by {auto}"
    return _told(out, told, *_facts(served, out))


def _describe(config: Any, served: ServedLanguage) -> None:
    """Write the names of the outputs into the config of a model, as transformers has them."""
    names = served.class_names
    if names is not None and len(names) == config.num_labels:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
    if served.task in PROBLEMS:
        config.problem_type = PROBLEMS[served.task]


def _facts(served: ServedLanguage, out: Path) -> list[str]:
    """Write how the outputs of classes or numbers are read; return a line for each fact."""
    from lightning_peft.cli.jobs.serving_facts import FACTS
    from lightning_peft.cli.runs.summary import write_json

    if served.outputs is None:
        return []
    names = None if served.class_names is None else list(served.class_names)
    facts = {"task": served.task, "class_names": names, "outputs": served.outputs.to_dict()}
    write_json(out / FACTS, facts)
    lines = [f"facts       {out / FACTS}"]
    if served.outputs.mean is not None:
        lines.append(f"numbers     output * std + mean, which are in {FACTS}")
    elif served.outputs.temperature != 1:
        lines.append(f"temperature divide the logits by that of {FACTS}")
    return lines


def _adapter(served: ServedLanguage, out: Path) -> str:
    from lightning_peft.adaptation.handle import find_adaptation
    from lightning_peft.cli.runs.summary import write_json
    from lightning_peft.files.writing import CONFIG_FILE

    adaptation = find_adaptation(served.backbone)
    if adaptation is None:
        raise ExportError("--to adapter: expected a run with an adapter, got one without.")
    adaptation.save(out)
    config = json.loads((out / CONFIG_FILE).read_text())
    note = "format      that of this package: peft has no such method"
    if "peft_type" in config:
        config["base_model_name_or_path"] = served.base
        config["task_type"] = TASK_TYPES[AUTO.get(served.task, OF_TEXTS)]
        write_json(out / CONFIG_FILE, config)
        note = f"format      that of peft: PeftModel.from_pretrained(base, directory){_served(out)}"
    served.tokenizer.save_pretrained(out)
    return _told(out, note, *_facts(served, out))


def _served(out: Path) -> str:
    """Say how vLLM serves an adapter, or why it does not."""
    from safetensors import safe_open

    from lightning_peft.files.vllm import vllm_problems, vllm_rank
    from lightning_peft.files.writing import CONFIG_FILE, WEIGHTS_FILE

    config = json.loads((out / CONFIG_FILE).read_text())
    with safe_open(out / WEIGHTS_FILE, framework="pt") as file:
        problems = vllm_problems(config, list(file.keys()))
    if problems:
        return f"\nvLLM        not with this adapter: {'; '.join(problems)}. Export merged weights"
    rank = vllm_rank(config)
    return ", or vLLM" if rank is None else f", or vLLM with --max-lora-rank {rank}"


def _told(out: Path, *more: str) -> str:
    from lightning_peft.cli.comparing.wording import size

    total = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    return "\n".join([f"wrote       {out} ({size(total)})", "tokeniser   beside it", *more])
