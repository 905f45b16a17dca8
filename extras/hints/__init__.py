"""What was probably meant by a key or name that a config cannot have. Without this folder, messages name the closest.

former_names  names in other projects, and their equivalents here
keys          unknown keys of a config, and arguments left over from before an override of the type
components    unknown names of components
utils/config and utils/registry.py ask for these hints. Nothing here imports torch.
"""

from extras.hints.components import component_hint, files_in_subfolders, single_task_hint
from extras.hints.former_names import FORMER_NAMES, import_hint, key_meant
from extras.hints.keys import key_hint, missing_type_hint, with_former_type

__all__ = [
    "FORMER_NAMES",
    "component_hint",
    "files_in_subfolders",
    "import_hint",
    "key_hint",
    "key_meant",
    "missing_type_hint",
    "single_task_hint",
    "with_former_type",
]
