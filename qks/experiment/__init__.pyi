from .evaluation import evaluate_model as evaluate_model
from .loading import load_model as load_model
from .reproduction import ReproduceConfig as ReproduceConfig, reproduce as reproduce
from .spec import RunSpec as RunSpec
from .training_data import TrainingData as TrainingData, load_training_data as load_training_data
from .training_run import run_training as run_training, train_head as train_head
