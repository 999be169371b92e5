from .comparing import Comparison as Comparison
from .comparing import compare as compare
from .merging import Merged as Merged
from .merging import merge as merge
from .predicting import Prediction as Prediction
from .predicting import predict as predict
