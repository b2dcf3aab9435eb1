"""The sub-commands of `m2clip`: each module declares its arguments in `add_parser` and does its work in `run`."""
