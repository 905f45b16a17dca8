"""Small colour images as bytes.

folders         which image files there are, by class
decoding        image files to pixels, in several processes
cache           the pixels of a data set, decoded once and kept beside it
image_loader    the data loader that augments and normalises them
"""
