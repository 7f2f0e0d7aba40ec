"""Folders of images: which files in them are images, and what is passed over."""
