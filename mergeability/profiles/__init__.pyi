from . import activations as activations
from . import gradients as gradients
from . import shared_gradients as shared_gradients
from . import sign_conflict as sign_conflict
from .evidence import Evidence as Evidence
from .profiles import Profiles as Profiles
from .views import Views as Views
