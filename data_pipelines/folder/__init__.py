"""Reads data of your own: a folder of images and labels."""
