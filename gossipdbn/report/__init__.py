"""What a person sees of a run: the live status and the page of a finished run."""
