"""Start runs, supervise their processes, follow them, and finish them: what the command line is made of."""
