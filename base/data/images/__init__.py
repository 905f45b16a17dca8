"""Small colour images, kept as bytes and augmented a batch at a time.

folder          a folder of images, one folder per class: its classes, and its files decoded to pixels
cache           the pixels of a data set, decoded once and kept beside it
image_loader    the base class of the data loaders: random crop and flip, normalisation
"""
