"""Data: datasets of images with captions. ShapeWorld is drawn, digits and folders are read."""
