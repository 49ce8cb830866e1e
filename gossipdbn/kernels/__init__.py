"""Floor 0: compiled arithmetic, arrays in and arrays out, the same bits on every CPU."""
