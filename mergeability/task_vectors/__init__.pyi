from .magnitudes import magnitude_thresholds as magnitude_thresholds
from .parameters import Parameter as Parameter
from .parameters import is_running_statistic as is_running_statistic
from .vectors import TaskVectors as TaskVectors
