"""The three phases of a training run's curve (`phases`), and how much of it is noise (`noise`)."""
