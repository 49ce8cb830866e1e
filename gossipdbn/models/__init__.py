"""RBMs and deep belief networks on one machine: specification, learning, likelihoods, model files."""
