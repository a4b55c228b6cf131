"""The options of a run: the table of all of them, their types and checks, and their form as mappings."""
