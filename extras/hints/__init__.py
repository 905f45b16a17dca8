"""What was probably meant by a key, name or text that a config cannot have.

Without this folder, messages name the closest, or what the JSON parser expected.

former_names  names in other projects, and their equivalents here
keys          unknown keys of a config
components    unknown names of components
json_syntax   mistakes in JSON
utils/config and utils/registry.py ask for these hints. Nothing here imports torch.
"""

from extras.hints.components import component_hint, single_task_hint
from extras.hints.former_names import former_name, hook_hint, import_hint, key_meant
from extras.hints.json_syntax import json_mistake
from extras.hints.keys import key_hint

__all__ = [
    "component_hint",
    "former_name",
    "hook_hint",
    "import_hint",
    "json_mistake",
    "key_hint",
    "key_meant",
    "single_task_hint",
]
