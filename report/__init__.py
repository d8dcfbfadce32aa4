"""What a run shows of itself: console, tables, pictures, TensorBoard."""
