"""Small colour images, stored as bytes and augmented batch by batch.

folder          a folder with one folder of images per class: its classes, and its files decoded to pixels
cache           the pixels of a data set, decoded once and stored next to it
image_loader    base class for data loaders: random crop and flip, normalisation
"""
