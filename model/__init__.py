"""Models, losses and metrics: one file per model. A config names them; a decorator registers them."""
