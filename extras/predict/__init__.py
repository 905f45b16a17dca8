"""Predictions of a run's model for new inputs: ``python predict.py -r RUN INPUT ...``.

prediction   from the options to the files: the way through the rest
inputs       from the words of the command line to the names of files
reading      from files to inputs of the model, in worker processes; arrays and tables row by row
arrays       the rows of .npy, .npz and .csv files
outputs      what the model's outputs say: a class, values, masks
writing      CSV, JSON and npz, written as the predictions come
grid         the picture of --show
"""

from extras.predict.prediction import predict

__all__ = ["predict"]
