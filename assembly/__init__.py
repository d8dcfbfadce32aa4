"""What configs.py hands out: each part of a run, made from its options."""
