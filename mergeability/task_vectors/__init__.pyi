from .magnitudes import magnitude_thresholds as magnitude_thresholds
from .vectors import Parameter as Parameter
from .vectors import TaskVectors as TaskVectors
from .vectors import is_running_statistic as is_running_statistic
