"""Training of prompts and of other upper layers: trainers, the activation cache, the linear probe."""
