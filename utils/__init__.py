"""What does not depend on training, and could serve any program.

From the command line and a config to checked values:

cli                command lines of the scripts, errors as exit statuses
config/            from a config file to a checked ``Config``, with a line for every mistake
schema             the keys of a config; schema_fields looks them up by their path
registry           the components a config can name
arguments          checks a component's arguments; nested_arguments those inside them
extras             folders of extras/ and packages, any of which may be missing

A run on a machine:

run_folder         the folder of a run; environment what its environment.json says
files              files that survive a kill at any moment
checkpoint/        the format of checkpoints, and when they are written
random             randomness as a function of seed and position
runtime            device, precision and processes, hidden from the step
device             which device; device_errors explains its errors
determinism        deterministic kernels
fast_step          torch's backward pass, ``zero_grad`` and ``step`` without what it does around them in Python
optimizers         what torch's optimizers need beyond ``step()``
prepare            a model made ready for device, precision and processes
distributed/       one process or several
signals            how a signal stops a run
freed_memory       memory that a step frees, kept for the next one

Helpers:

errors             what a user can fix: one message, never a traceback
text               numbers, times and tables as text
tree               nested structures of tensors
paths              the project's folder
streams            standard output and error that never fail
user_code          the line of the user's code that raised an error
garbage_collection less of it, for what a command imports
"""
