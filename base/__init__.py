"""What you subclass, and the loop that trains it.

To subclass:

base_model         ``BaseModel``: a torch module that knows its size
base_data_loader   ``BaseDataLoader``: a data set, and what is held out of it
base_trainer       ``BaseTrainer``: the training loop
metric             ``StepResult``, and the type of a metric function

A run is built and used in this order:

build              the objects of a run from its checked config
construct          one component from its name and arguments
losses             the loss, or a weighted sum of several by name, from the config
initial_weights    weights from a file, before the first step
experiment         what is built, as a trainer gets it
outputs            where results go: writers, checkpoints, observers
load_run           a trained run for scripts, notebooks and test.py

data/              turns a data set into the batches of a step
training/          the parts of the training loop
array_file         an array on disk, for data larger than memory
"""
