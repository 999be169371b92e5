from .catalogue import SUBJECTS as SUBJECTS
from .subject import Subject as Subject
