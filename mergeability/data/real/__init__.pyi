from .layouts import Layout as Layout
from .source import ImageSource as ImageSource
from .source import image_task as image_task
