"""Sentences: a SentenceTransformer in a module with the loss of its library."""

import lightning.pytorch as pl
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from tests.wild.case import Case, batches

DISTRIBUTION = "sentence-transformers"
WIDTH = 32


class Words(nn.Module):
    """The library's own Transformer module loads a directory of the hub; this one is small."""

    def __init__(self):
        super().__init__()
        self.auto_model = BertModel(
            BertConfig(
                vocab_size=50,
                hidden_size=WIDTH,
                num_hidden_layers=3,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=16,
            )
        )

    def forward(self, features):
        found = self.auto_model(features["input_ids"], features["attention_mask"])
        return features | {"token_embeddings": found.last_hidden_state}


class Pairs(pl.LightningModule):
    """In-batch negatives, as MultipleNegativesRankingLoss has them."""

    def __init__(self, model, projection=False):
        super().__init__()
        self.model = model
        self.projection = nn.Linear(WIDTH, 8) if projection else nn.Identity()

    def encode(self, ids):
        features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return self.projection(self.model(features)["sentence_embedding"])

    def training_step(self, batch):
        one, other = map(self.encode, batch)
        return F.cross_entropy(20 * one @ other.T, torch.arange(len(one), device=one.device))

    def validation_step(self, batch):
        self.log("loss", loss := self.training_step(batch))
        return loss

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def _model():
    return SentenceTransformer(
        modules=[Words(), Pooling(WIDTH, pooling_mode="mean"), Normalize()], device="cpu"
    )


def _pairs():
    return batches(lambda i: (torch.randint(50, (12,)), torch.randint(50, (12,))))


CASES = [
    Case(
        name,
        lambda projection=projection: Pairs(_model(), projection),
        _pairs,
        new=("projection",) if projection else (),
        load=lambda projection=projection: {"model": _model(), "projection": projection},
    )
    for name, projection in (
        ("SentenceTransformer", False),
        ("SentenceTransformer with a projection", True),
    )
]
