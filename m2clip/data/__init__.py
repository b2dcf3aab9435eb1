"""Videos, their lists and class names: everything between the disk and the model's input tensor."""
