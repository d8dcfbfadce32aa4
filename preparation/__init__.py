"""What `prepare.py` does to folders of images: one file a command."""
