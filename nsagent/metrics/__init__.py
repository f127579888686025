"""The catalogue of metric families and the writer of the exposition formats."""
