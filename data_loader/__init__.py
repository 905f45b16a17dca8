"""Data sets: one file each. ``DATA_LOADERS.register`` makes a class available to configs by its name.

random_tensor   random inputs and targets, for trying a model
cifar10         CIFAR10's photographs
image_folder    your own pictures, one folder per class
"""
