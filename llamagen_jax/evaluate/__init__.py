"""How good images are: distances between sets of features, scores, and errors of figures."""

from llamagen_jax.evaluate.distances import frechet_distance
from llamagen_jax.evaluate.manifolds import precision_recall
from llamagen_jax.evaluate.scores import inception_score

__all__ = ["frechet_distance", "inception_score", "precision_recall"]
