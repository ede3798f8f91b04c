"""Compare the checkpoints of Lightning's own transformer demo with and without the callback.

Only the download of the demo's text is replaced. Run it with
``python benchmarks/checkpoint_bytes.py``.
"""

import tempfile
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.demos.transformer import LightningTransformer
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from lightning_peft.evaluation.efficiency import human_bytes


class Demo(LightningTransformer):
    """Lightning's demo without the download of its text."""

    def prepare_data(self) -> None:
        pass


def main() -> None:
    words = torch.randint(0, 33278, (16, 36))
    data = DataLoader(TensorDataset(words[:, :-1], words[:, 1:]), batch_size=4)
    sizes = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, callbacks in (("full", []), ("lora, rank 4", [lp.PEFT("lora", rank=4)])):
            trainer = L.Trainer(
                max_steps=2,
                callbacks=callbacks,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=directory,
            )
            module = Demo()
            trainer.fit(module, data)
            for kind, weights_only in (("to go on from", False), ("weights only", True)):
                path = Path(directory, "demo.ckpt")
                trainer.save_checkpoint(path, weights_only=weights_only)
                sizes[name, kind] = path.stat().st_size
    adaptation = lp.find_adaptation(module.model)
    assert adaptation is not None
    print(adaptation.report())
    for kind in ("to go on from", "weights only"):
        full, small = sizes["full", kind], sizes["lora, rank 4", kind]
        print(f"{kind}: full {human_bytes(full)}, lora {human_bytes(small)}: {full / small:.0f}x")
    trained = adaptation.report().trained_bytes
    extra = sizes["lora, rank 4", "weights only"] - trained
    print(f"weights only, beyond the trained parameters: {human_bytes(extra)}")


if __name__ == "__main__":
    main()
