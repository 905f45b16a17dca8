"""Models, losses and metrics: one file per model. Decorators register them for use in a config."""
