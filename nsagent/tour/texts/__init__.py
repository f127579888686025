"""What the tour says, a module a language; all have the same keys, and in each text the same fields."""
