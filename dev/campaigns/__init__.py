"""Runs that are disturbed until they end, compared with runs that were left alone.

kill             runs are killed and resumed
resume_changes   runs resume with random changes of their config
sweep            sweeps are killed and continued
torchrun         several processes under torchrun are brought to grief
two_hosts        the link between two hosts goes down
kernels          which operations differ between equal calls on a device
"""
