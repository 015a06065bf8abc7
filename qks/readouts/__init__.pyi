from .patches import PatchReadout as PatchReadout
from .readout import Readout as Readout, ReadoutScores as ReadoutScores
from .self_attention import SelfAttentionReadout as SelfAttentionReadout
from .vector import VectorReadout as VectorReadout
