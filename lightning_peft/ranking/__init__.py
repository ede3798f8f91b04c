"""Choosing a pretrained model by measuring how useful its frozen features are for a task.

Each score is a function of features ``(N, D)`` and labels ``(N,)``; :func:`rank_candidates`
computes the features of each candidate once and then all scores.
"""

from lightning_peft.ranking.candidates import Candidate, find_candidates
from lightning_peft.ranking.encoders import find_encoders
from lightning_peft.ranking.h_score import h_score
from lightning_peft.ranking.linear_probe import Probe, linear_probe
from lightning_peft.ranking.logme import logme
from lightning_peft.ranking.neighbours import nearest_neighbours
from lightning_peft.ranking.nleep import leep, nleep
from lightning_peft.ranking.rank import SCORES, Ranking, Row, Skipped, rank_candidates

__all__ = [
    "SCORES",
    "Candidate",
    "Probe",
    "Ranking",
    "Row",
    "Skipped",
    "find_candidates",
    "find_encoders",
    "h_score",
    "leep",
    "linear_probe",
    "logme",
    "nearest_neighbours",
    "nleep",
    "rank_candidates",
]
