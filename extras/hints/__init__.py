"""What was probably meant by a key or name that a config cannot have, and which keys have no effect.

Without this folder, messages name the closest, and a key without effect is not named.

former_names  names in other projects, and their equivalents here
keys          unknown keys of a config
components    unknown names of components
ineffective   keys that have no effect because of other keys
utils/config and utils/registry.py ask for these hints. Nothing here imports torch.
"""

from extras.hints.components import component_hint, single_task_hint
from extras.hints.former_names import former_name, hook_hint, key_meant
from extras.hints.ineffective import ineffective
from extras.hints.keys import key_hint

__all__ = ["component_hint", "former_name", "hook_hint", "ineffective", "key_hint", "key_meant", "single_task_hint"]
