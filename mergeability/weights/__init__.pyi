from . import checkpoints as checkpoints
from . import hub as hub
from . import hugging_face as hugging_face
from . import names as names
from . import safetensors_file as safetensors_file
from . import torch_file as torch_file
from . import whole_clip as whole_clip
from .checkpoints import Checkpoint as Checkpoint
