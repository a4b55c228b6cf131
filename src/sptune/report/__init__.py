"""Report pages: HTML files that open without a network. This room knows figures and texts, not where they lie."""
