"""Molecules: chemprop's message passing."""

from chemprop import data, models, nn

from tests.wild.case import Case

DISTRIBUTION = "chemprop"
SMILES = ["CCO", "CCN", "CCC", "c1ccccc1", "CC(=O)O", "CCCl", "CCBr", "C1CCCCC1"]


def _data(value=float):
    points = [
        data.MoleculeDatapoint.from_smi(text, [value(i % 2)]) for i, text in enumerate(SMILES)
    ]
    return data.build_dataloader(data.MoleculeDataset(points), batch_size=4, shuffle=False)


def _own(module, folder):
    models.save_model(folder / "model.pt", module)
    return models.load_model(folder / "model.pt")


def _model(predictor, passing=nn.BondMessagePassing):
    return models.MPNN(passing(d_h=32), nn.MeanAggregation(), predictor(input_dim=32))


CASES = [
    Case(
        f"MPNN({predictor.__name__}, {passing.__name__})",
        lambda predictor=predictor, passing=passing: _model(predictor, passing),
        _data,
        backbone=("message_passing",),
        new=("predictor",),
        own=_own,
    )
    for predictor, passing in (
        (nn.RegressionFFN, nn.BondMessagePassing),
        (nn.BinaryClassificationFFN, nn.AtomMessagePassing),
    )
]
