from .block import LastBlock as LastBlock, TowerStates as TowerStates, read_states as read_states
from .local_global import LocalGlobalReadout as LocalGlobalReadout
from .patches import PatchReadout as PatchReadout
from .readout import Readout as Readout, ReadoutScores as ReadoutScores, cosines as cosines
from .registry import (
    READOUT_NAMES as READOUT_NAMES,
    READOUTS as READOUTS,
    available_readouts as available_readouts,
    choose_readout as choose_readout,
    find_readout as find_readout,
)
from .self_attention import SelfAttentionReadout as SelfAttentionReadout
from .standardised import StandardisedReadout as StandardisedReadout
from .tagger import ZeroShotTagger as ZeroShotTagger, load as load
from .vector import VectorReadout as VectorReadout
from .windows import WindowReadout as WindowReadout
