"""Models: what turns raw columns into predictions, how it is built, saved, loaded and served."""
