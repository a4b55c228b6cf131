"""A whole run: its options, its plan, the stages it goes through, and the folder it writes."""
