"""Training steps: one file per trainer. ``TRAINERS.register`` makes a class available to configs by its name.

trainer   one model, one loss, batches of (inputs, targets)
"""
