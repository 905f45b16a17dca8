"""Training steps: one file per trainer. Decorators register them for use in a config.

trainer   one model, one loss, batches of (inputs, targets)
"""
