"""What is attached to a backbone: prompt generators, gates, and the tuner that puts them at its layers."""
