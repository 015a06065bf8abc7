from .core import QKSError as QKSError
from .data.pocket import write_pocket as write_pocket
from .evaluate.metrics import evaluate_scores as evaluate_scores
from .experiment.training_data import load_training_data as load_training_data
from .model.config import HeadConfig as HeadConfig
from .model.head import QKSHead as QKSHead, head_scores as head_scores
from .model.tagger import QKS as QKS
from .vlp.loading import load_vlp as load_vlp

__version__: str
