"""Predictions of a run's model for new inputs: ``python predict.py -r RUN INPUT ...``.

prediction   from the options to the output files: ties the rest together
inputs       from command-line arguments to file names
reading      from files to inputs of the model, in worker processes; arrays and tables row by row
outputs      interprets the model's outputs: a class, values, masks
writing      CSV, JSON and npz
grid         the image for --show
"""

from extras.predict.prediction import predict

__all__ = ["predict"]
