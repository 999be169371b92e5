from .clip import ClipModel as ClipModel
from .mini import pretrain as pretrain
from .zero_shot import zero_shot_head as zero_shot_head
