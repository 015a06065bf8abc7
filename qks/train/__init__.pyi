from .config import RunConfig as RunConfig, TrainConfig as TrainConfig
from .loop import fit as fit
from .signals import Interrupted as Interrupted
