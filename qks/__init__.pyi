from .core import QKSError as QKSError
from .data.pocket import PocketConfig as PocketConfig, write_pocket as write_pocket
from .data.splits import open_splits as open_splits, prepare as prepare
from .evaluate.baselines import best_patch_scores as best_patch_scores, zero_shot_scores as zero_shot_scores
from .evaluate.metrics import evaluate_scores as evaluate_scores
from .evaluate.protocols import PROTOCOLS as PROTOCOLS, Protocol as Protocol
from .evaluate.tables import results_table as results_table
from .experiment.training_data import TrainingData as TrainingData, load_training_data as load_training_data
from .explore.explorer import Explorer as Explorer
from .model.config import HeadConfig as HeadConfig
from .model.head import QKSHead as QKSHead, QKSOutput as QKSOutput
from .model.losses import AsymmetricLoss as AsymmetricLoss, bce_loss as bce_loss, ranking_loss as ranking_loss
from .model.prompts import PromptPool as PromptPool
from .model.query import QueryExtractor as QueryExtractor
from .model.residual import make_head as make_head
from .model.scoring import head_scores as head_scores
from .model.sharing import share as share
from .model.tagger import QKS as QKS
from .readouts.registry import READOUTS as READOUTS
from .readouts.tagger import ZeroShotTagger as ZeroShotTagger, load as load
from .tokens.cache import cache_tokens as cache_tokens
from .train.config import RunConfig as RunConfig, TrainConfig as TrainConfig
from .train.loop import fit as fit
from .vlp.frozen import VLP as VLP
from .vlp.loading import load_vlp as load_vlp

__version__: str
