from .config import HeadConfig as HeadConfig
from .head import QKSHead as QKSHead, QKSOutput as QKSOutput
from .losses import AsymmetricLoss as AsymmetricLoss, bce_loss as bce_loss, ranking_loss as ranking_loss
from .prompts import DEFAULT_TEMPLATES as DEFAULT_TEMPLATES, PromptPool as PromptPool, embed_names as embed_names
from .query import QueryExtractor as QueryExtractor
from .residual import ResidualHead as ResidualHead, make_head as make_head
from .scoring import head_scores as head_scores, score_batches as score_batches
from .sharing import LabelScores as LabelScores, share as share
from .tagger import QKS as QKS, ScoredTag as ScoredTag, Tag as Tag, Tagger as Tagger
from .thresholds import (
    Thresholds as Thresholds,
    background_thresholds as background_thresholds,
    load_thresholds as load_thresholds,
    save_thresholds as save_thresholds,
)
from .training_free import training_free_score as training_free_score
