from .run import GIBIBYTE as GIBIBYTE
from .run import Clock as Clock
from .run import Run as Run
from .run import cores as cores
from .workers import check_workers as check_workers
