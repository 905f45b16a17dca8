"""How fast training is beside loops written by hand: ``python -m dev.bench``.

ours               a job by the unchanged train.py; components registers the models and data of the configs
hand_written       the best loops that we can write by hand; jobs has those of real users, own_data their data sets
parts              the parts of a step of ours
peers              the same jobs with other frameworks

Each of the others measures one thing, as a script of its own:

accuracy           time to the official tutorial's accuracy
samples            loading a user's data set
alive              which tensors are alive in a step
checkpoint_stall   what a checkpoint costs the step beside it
ddp                a step of several processes
growth             whether a long run costs more per step
sweep              a sweep beside the same runs by a shell loop
"""
