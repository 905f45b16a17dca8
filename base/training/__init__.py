"""The parts of the training loop in base_trainer.py.

accumulation    which micro-batches make an optimizer step
metrics         means and other metrics, kept on the device until they are logged
progress        what is counted: steps, epochs, the best value
schedule        the learning rate
first_batch     what to say when the first batch fails
observer        the interface of what watches the training (TensorBoard, the test report)
training_log    what the console, metrics.jsonl and TensorBoard get, speed and ETA included
summary         what the console shows at the start and at the end
resume          which run and checkpoint to resume from
"""
