"""What was probably meant by a key or name that a config cannot have.

Without this folder, messages name the closest.

former_names  names in other projects, and their equivalents here
keys          unknown keys of a config
components    unknown names of components
utils/config and utils/registry.py ask for these hints. Nothing here imports torch.
"""

from extras.hints.components import component_hint, single_task_hint
from extras.hints.former_names import former_name, hook_hint, key_meant
from extras.hints.keys import key_hint

__all__ = ["component_hint", "former_name", "hook_hint", "key_hint", "key_meant", "single_task_hint"]
