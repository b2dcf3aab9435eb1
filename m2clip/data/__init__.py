"""Videos, their lists and class names: everything between the disk and the model's input tensor."""

# Names of the built-in data sets, here because the command line offers them without importing what renders them.
BUILT_IN = ("motion", "mocap")
