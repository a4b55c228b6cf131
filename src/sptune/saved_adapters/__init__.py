"""Using the adapters that runs wrote: reading and checking their folders, loading one or several, and their answers."""
