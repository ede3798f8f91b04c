"""Serve ``lightning-peft export`` for language models: a directory that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_peft.backbones.hugging_face import quietly
from lightning_peft.errors import ExportError, MethodError

if TYPE_CHECKING:
    from lightning_peft.cli.jobs.served_language import ServedLanguage

__all__ = ["check_language_export", "export_language"]

FORMATS = ("safetensors", "adapter")
TOLERATED = 0.1
"""The largest difference of outputs, relative to the largest; rounding to bfloat16 is below it."""
TOKENS = 16


def check_language_export(out: Path, format: str) -> None:
    """Refuse what cannot be exported, before anything is loaded.

    Raises:
        ExportError: If there is no such format, or the directory holds something.
    """
    if format not in FORMATS:
        raise ExportError(
            f"--to: expected one of {', '.join(FORMATS)} for a language model, got {format}. Other "
            "tools make graphs of the merged model."
        )
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ExportError(f"--out: expected a new or an empty directory, got {out}.")


def export_language(served: ServedLanguage, out: Path, format: str) -> str:
    """Write a language model with its tokeniser, and read it back.

    Args:
        served: The model.
        out: The directory: new or empty.
        format: ``"safetensors"``, the merged model for ``AutoModelForCausalLM.from_pretrained``; or
            ``"adapter"``, for ``PeftModel.from_pretrained`` and vLLM.

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
    ids = torch.arange(TOKENS)[None] * 7 % model.config.vocab_size
    with torch.no_grad():
        before = model(input_ids=ids, use_cache=False).logits.float()
        adaptation = find_adaptation(model)
        if adaptation is not None:
            try:
                model = adaptation.merge_and_unload()
            except MethodError as error:
                raise ExportError(
                    f"--to: expected an adapter that can be merged, but {error} Export it with "
                    "--to adapter."
                ) from error
        with quietly(transformers):
            model.save_pretrained(out)
            served.tokenizer.save_pretrained(out)
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")
            loaded.eval()
        after = loaded(input_ids=ids, use_cache=False).logits.float()
    difference = float((after - before).abs().max() / before.abs().max())
    if not difference <= TOLERATED:
        raise ExportError(
            f"{out}: expected the outputs of the adapted model, read back, but they differ by "
            f"{difference:.2g} of the largest. Do not use it."
        )
    return _told(out, f"difference  {difference:.1e} of the largest output, read back")


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
        config["task_type"] = "CAUSAL_LM"
        write_json(out / CONFIG_FILE, config)
        note = f"format      that of peft: PeftModel.from_pretrained(base, directory){_served(out)}"
    served.tokenizer.save_pretrained(out)
    return _told(out, note)


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
