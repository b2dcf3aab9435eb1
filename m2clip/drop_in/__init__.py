"""Adapters in the vision transformers of other libraries, which stay what they are and see motion."""

from m2clip.drop_in.placing import adapt, trained_parameters
from m2clip.drop_in.saving import load, save

__all__ = ["adapt", "load", "save", "trained_parameters"]
