from .source import Rendered as Rendered
from .source import find_subject as find_subject
from .source import render as render
from .subjects import SUBJECTS as SUBJECTS
from .subjects import Subject as Subject
