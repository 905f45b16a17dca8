"""The parts of the training loop in base_trainer.py.

trainer_interface  what a trainer defines and calls
progress        what is counted: steps, epochs, the position in the data, the best value
metrics         the loss and the metrics of a phase; library_metric holds those of torchmetrics
loss            what a loss is a mean over, over the micro-batches and processes of a step
parameters      which optimizer and which group trains each parameter, and what is frozen
schedule        an optimizer with its learning rates
optimizing      the step of several optimizers, and of one that evaluates the loss itself (LBFGS)
evaluation      the loop of validation and test
averaging       the average of the weights, which is evaluated in their place
first_batch     what to say when the first batch fails or looks wrong
broadcast       whether a loss or a metric compares each output with its own target
observer        the interface of what watches the training (TensorBoard, the test report)
training_log    what the console, metrics.jsonl and TensorBoard get, speed and ETA included
summary         what the console shows at the start and at the end
run             a run in its folder: what it writes, logs, and leaves behind if it fails
resume          which run and which checkpoint to resume, and what of the config may have changed
state           how a trainer takes its state back, and whether a saved one fits
saved_data      what a checkpoint remembers of the data set
"""
