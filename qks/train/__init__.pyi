from .config import RunConfig as RunConfig, TrainConfig as TrainConfig
from .loop import fit as fit
