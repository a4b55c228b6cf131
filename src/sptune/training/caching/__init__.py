"""The activation cache: what may be cached, where it is stored, and how a model's lower layers are left out with it."""
