"""Which images make up a batch, and the processes that read them."""
