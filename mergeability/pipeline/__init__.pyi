from .request import Request as Request
from .result import Analysis as Analysis
from .run import analyse as analyse
from .verdicts import verdict as verdict
