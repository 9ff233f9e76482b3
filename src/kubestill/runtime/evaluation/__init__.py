"""How good a model is, how sure we are of it, what it costs, and what to do about it."""
