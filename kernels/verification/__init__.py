"""A kernel is compared with the reference once on a machine, in a process of its own, before "auto" takes it there."""
