"""The parts of the training loop in base_trainer.py.

trainer_interface  what a trainer has and defines, and what it can call besides backward and optimizing
progress        counters: steps, epochs, the position in the data, the best value
metrics         sums and means of the loss and the metrics; library_metric wraps the metrics of torchmetrics
loss            what a loss is averaged over: samples, class weights, tokens, pixels
loss_checks     ends the training at a loss that is not finite; warns of losses averaged over different numbers
parameters      which optimizer and parameter group trains each parameter, and what is frozen
schedule        an optimizer with its learning rate schedule; schedule_state what a checkpoint keeps of it
optimizing      steps with several optimizers, or with one that evaluates the loss itself (LBFGS)
evaluation      the loop of validation and test
epoch_start     what changes from epoch to epoch, before the first step of each
saving          what a checkpoint holds, and how one is written and loaded
averaging       averaged weights, evaluated in place of the weights
first_batch     checks of a first batch, and messages for one that fails
broadcast       checks that a loss or metric compares each output with its own target
observer        interface for watching a training (advice, TensorBoard, the test report)
training_log    logging to the console, metrics.jsonl and TensorBoard, including speed and ETA
summary         console output at the start and the end
run             a run in its folder: what it writes and logs, and what remains if it fails
resume          which run and checkpoint to resume, and which config changes to accept
state           the parts of a checkpoint: their names, and how the state of one is loaded
saved_data      what a checkpoint records about the data set
"""
