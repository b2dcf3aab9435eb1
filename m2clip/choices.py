"""Names that are chosen in configurations, on the command line and in calls alike; `typing.get_args` lists them."""

from typing import Literal

Sampling = Literal["uniform", "dense", "dense_centres"]
Augmentation = Literal["crop_flip", "randaugment", "multi_scale_crop", "none"]
Statistics = Literal["clip", "imagenet", "inception"]
Transform = Literal["standard", "authors"]
Crops = Literal[1, 3, "m2clip4"]
OnError = Literal["raise", "skip", "wrong"]
Precision = Literal["fp32", "bf16", "fp16"]
