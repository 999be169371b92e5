from . import commands as commands
from . import data as data
from . import evaluation as evaluation
from . import finetuning as finetuning
from . import linalg as linalg
from . import merging as merging
from . import metrics as metrics
from . import models as models
from . import pipeline as pipeline
from . import prediction as prediction
from . import profiles as profiles
from . import reporting as reporting
from . import store as store
from . import task_vectors as task_vectors
from . import verbs as verbs
from . import weights as weights
from .errors import UserError as UserError
from .metrics.measure import measure as measure
from .profiles.profiles import Profiles as Profiles
from .store import Store as Store
from .task_vectors.vectors import TaskVectors as TaskVectors
from .verbs.comparing import compare as compare
from .verbs.merging import merge as merge
from .verbs.predicting import predict as predict
from .weights import checkpoints as checkpoints

__version__: str
