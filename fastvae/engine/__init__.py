"""The training engine: the parts of the loop that know nothing of models or data."""
