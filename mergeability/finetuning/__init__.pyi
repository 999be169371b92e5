from .module import FineTuningModule as FineTuningModule
from .module import TrainingSettings as TrainingSettings
from .run import finetune as finetune
