from .evaluator import Judge as Judge
from .evaluator import pixel_accuracy as pixel_accuracy
from .merges import evaluate_models as evaluate_models
