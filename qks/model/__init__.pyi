from .config import HeadConfig as HeadConfig
from .head import QKSHead as QKSHead, QKSOutput as QKSOutput, head_scores as head_scores, score_batches as score_batches
from .prompts import PromptPool as PromptPool
from .query import QueryExtractor as QueryExtractor
from .sharing import share as share
from .tagger import QKS as QKS
