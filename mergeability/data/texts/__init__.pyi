from .catalogue import SUBJECTS as SUBJECTS
from .catalogue import find_subject as find_subject
from .corpus import TextCorpus as TextCorpus
from .subject import Collected as Collected
from .subject import Subject as Subject
from .subject import Written as Written
