"""For those who work on the template itself. new_project.py leaves this folder out.

bench/           how fast training is beside loops written by hand
campaigns/       runs that are killed and resumed, compared with runs left alone
accelerator/     the tests on an emulated accelerator
minimal          the tests of a minimal project
fuzz_config      mutated configs: each is refused with a location, or trains
architecture     draws docs/architecture.svg from the imports
project_files    the files of a new project, for new_project.py
update_project   merges later changes of the template into a project made from it
"""
