from .calibration import calibration_sample as calibration_sample
from .inputs import Images as Images
from .inputs import Source as Source
from .real.layouts import Layout as Layout
from .real.source import ImageSource as ImageSource
from .real.source import image_task as image_task
from .rendered.source import Rendered as Rendered
from .tasks import Task as Task
