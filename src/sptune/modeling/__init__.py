"""Attaching prompts to a backbone: the PEFT tuner, its layers, generators and gates; finding and loading backbones."""

# Importing PEFT registers SPT, which imports most modules of this package: before one of them is half imported.
import sptune.config  # noqa: F401
