from .evaluator import Evaluator as Evaluator
from .evaluator import pixel_accuracy as pixel_accuracy
from .merges import evaluate_models as evaluate_models
from .text_baseline import tfidf_accuracy as tfidf_accuracy
