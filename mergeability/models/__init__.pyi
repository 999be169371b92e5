from .clip import ClipModel as ClipModel
from .features import features as features
from .mini import pretrain as pretrain
from .zero_shot import zero_shot_head as zero_shot_head
