#!/usr/bin/env python3
"""Compiles the kernels of layers and of fine-tuning, for grey and for Gaussian rows."""

from gossipdbn.models import learners
from gossipdbn.models.spec import ModelSpec, PhaseSpec

PLAN = (PhaseSpec("cd"), PhaseSpec("cd", layer=1), PhaseSpec("backprop", optimizer="adam"))

if __name__ == "__main__":
    learners.warm(ModelSpec(8, (4, 4), "grey", 2), PLAN)
    learners.warm(ModelSpec(8, (4, 4), "gaussian", 2), PLAN)
