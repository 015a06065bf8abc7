from .estimate import (
    Workload as Workload,
    estimate_table as estimate_table,
    machine_from_peak as machine_from_peak,
    measure_machine as measure_machine,
)
from .evaluation import evaluate_model as evaluate_model
from .loading import load_model as load_model
from .reproduction import ReproduceConfig as ReproduceConfig, reproduce as reproduce
from .spec import RunOptions as RunOptions, RunSpec as RunSpec, TokenConfig as TokenConfig, VLPSource as VLPSource
from .training_data import TrainingData as TrainingData, load_training_data as load_training_data
from .training_run import run_training as run_training, train_head as train_head
