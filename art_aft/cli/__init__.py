"""The commands of `art-aft`, one a file: each has `add`, which adds it to the command line."""
