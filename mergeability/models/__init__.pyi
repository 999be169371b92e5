from .clip import ClipModel as ClipModel
from .features import features as features
from .mini import pretrain as pretrain
from .text import TextModel as TextModel
from .zero_shot import class_prototypes as class_prototypes
from .zero_shot import zero_shot_head as zero_shot_head
