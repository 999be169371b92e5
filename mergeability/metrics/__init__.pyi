from . import gram as gram
from . import measure as measure
from . import rank as rank
from . import same_samples as same_samples
from . import sign as sign
from . import subspace as subspace
