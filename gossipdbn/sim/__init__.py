"""The core on virtual time: a whole cluster with its faults in one process, from one seed."""
