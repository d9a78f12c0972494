"""The operator against torch's attention and against standard attention."""
