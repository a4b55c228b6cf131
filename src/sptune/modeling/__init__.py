"""What is attached to a backbone: prompt generators, gates, and the tuner that puts them at its layers."""

# Importing PEFT registers SPT, which imports most modules of this package: before one of them is half imported.
import sptune.config  # noqa: F401
