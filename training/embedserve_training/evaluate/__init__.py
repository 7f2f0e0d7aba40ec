"""The quality of encoders: figures with and without labels, beside baselines that need no training.

``evaluate`` measures run folders and encoder files on a folder of images. ``figures`` and ``self_retrieval`` compute
the same figures for any vectors.
"""

from embedserve_training.evaluate.baselines import principal_components, raw_pixels
from embedserve_training.evaluate.evaluation import Evaluation, evaluate
from embedserve_training.evaluate.figures import Figures, figures
from embedserve_training.evaluate.neighbours import nearest, vote
from embedserve_training.evaluate.self_retrieval import SelfRetrieval, self_retrieval
from embedserve_training.evaluate.table import Figure, Row

__all__ = [
    "Evaluation",
    "Figure",
    "Figures",
    "Row",
    "SelfRetrieval",
    "evaluate",
    "figures",
    "nearest",
    "principal_components",
    "raw_pixels",
    "self_retrieval",
    "vote",
]
