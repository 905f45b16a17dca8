"""Data sets: one file each. Decorators register them for use in a config.

random_tensor   random inputs and targets, for trying a model
cifar10         CIFAR10's photographs
image_folder    your own pictures, one folder per class
"""
