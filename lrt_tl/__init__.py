"""Carry linear features from a small language model to a large one: a plugin for TransformerLens."""

from lrt_tl.alignment.affine_map import AffineMap as AffineMap
from lrt_tl.alignment.fit import fit_activations as fit_activations
from lrt_tl.alignment.fit import fit_affine_map as fit_affine_map
from lrt_tl.errors import ArtifactError as ArtifactError
from lrt_tl.errors import LrtError as LrtError
from lrt_tl.errors import MismatchError as MismatchError
from lrt_tl.evaluation.behavior import Behavior as Behavior
from lrt_tl.evaluation.behavior import read_behavior as read_behavior
from lrt_tl.evaluation.evaluate import TransferResult as TransferResult
from lrt_tl.evaluation.evaluate import evaluate_transfer as evaluate_transfer
from lrt_tl.steering.contrast import ContrastPair as ContrastPair
from lrt_tl.steering.contrast import read_contrast_pairs as read_contrast_pairs
from lrt_tl.steering.extraction import mean_difference as mean_difference
from lrt_tl.steering.vector import SteeringVector as SteeringVector
from lrt_tl.text.documents import read_documents as read_documents
